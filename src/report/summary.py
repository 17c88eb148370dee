"""The summary of a pipeline run as Markdown and as text: the decision first, then scores, versions and links. Pure.

It works with whatever records a run left in results/, after a failure too, and lists those that are missing.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote

from tabulate import tabulate

from src.core.params import METRICS
from src.core.records import EvaluationReport
from src.decisions import words
from src.decisions.record import is_about
from src.report.charts import NAMES, SIDES, WEIGHTED

Outcome = Literal["success", "failure", "cancelled", "skipped"]
OUTCOMES: tuple[Outcome, ...] = ("success", "failure", "cancelled", "skipped")
_ENDED = {"failure": "failed", "cancelled": "was cancelled", "skipped": "did not run"}
MARKER = "<!-- champion -->"
_URL = re.compile(r"https?://[\w.~:/?#@!$&*+,;=%-]+", re.ASCII)
# Every character that starts Markdown, HTML, a formula or a table cell; GitHub turns an address with `:` into a link.
_SPECIAL = re.compile(r"""[\\`*_{}\[\]<>|~&"'$!:@#]""")
# GitHub notifies @name and links #1; a zero-width space prevents both.
_CALLING = re.compile(r"(?<=[@#])(?=\w)")
_GAP = "\u200b"


@dataclass(frozen=True)
class RunResults:
    """The records in results/, and the run that is summarised. A missing report is None, a missing record empty.

    intervals: name of METRICS or `weighted_score` to (low, high), None if the answers cannot be read.
    problems: why a record is missing, one line each.
    outcome: how the pipeline ended.
    ci_url: the page of this run.
    hub: the address of the Hub.
    page: where the report is, None if there is none.
    """

    report: EvaluationReport | None
    info: Mapping[str, Any]
    comparison: Mapping[str, Any]
    intervals: Mapping[str, tuple[float, float]] | None
    confidence: float | None
    problems: Sequence[str]
    outcome: Outcome
    ci_url: str | None
    branch: str | None
    hub: str
    page: str | None

    @property
    def is_stale(self) -> bool:
        """True if an earlier run made the decision: results/deployment is committed, and this run failed before it."""
        own = self.ci_url is not None and self.info.get("ci_url") == self.ci_url
        return self.outcome != "success" and "champion" in self.info and not own

    @property
    def is_repeated(self) -> bool:
        """True if an earlier run made the promotion: this run found `already`, and left the files unchanged."""
        earlier = self.ci_url is not None and self.info.get("ci_url") != self.ci_url
        return self.is_judged and self.info.get("result") == "promoted" and earlier

    @property
    def is_judged(self) -> bool:
        """True if this run decided about the evaluated model."""
        return not self.is_stale and self.report is not None and is_about(self.info, self.report)


@dataclass(frozen=True)
class Link:
    """A text and the address that it links to, None if there is none."""

    text: str
    url: str | None


@dataclass(frozen=True)
class Summary:
    """The content of a summary, in the order in which it is shown; every text must be escaped where it is shown.

    scores: the rows of the score table, its header first; empty without an evaluation.
    """

    title: str
    sentence: str
    notes: Sequence[str]
    scores: Sequence[tuple[str, ...]]
    comparisons: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, Link]]
    problems: Sequence[str]


def summary(found: RunResults) -> Summary:
    """Summarise the records of a run."""
    top = _headline(found)
    name = found.info.get("model_name")
    compared = found.comparison if found.is_judged else {}
    return Summary(
        title=f"{top.heading}: {name}" if name else top.heading,
        sentence=top.sentence,
        notes=top.notes,
        scores=list(_scores(found, found.report, compared)) if found.report and not found.is_stale else [],
        comparisons=list(words.comparisons(compared, SIDES)),
        facts=list(_facts(found)),
        problems=found.problems,
    )


def markdown(told: Summary) -> str:
    """The summary as Markdown, for the page of a job or a pull request."""
    parts = [f"## {escaped(told.title)}", escaped(told.sentence)]
    parts += ["\n".join(f"- {escaped(note)}" for note in told.notes)] if told.notes else []
    parts += [_table("|---|--:|---|" + "--:|" * (len(told.scores[0]) - 3), told.scores)] if told.scores else []
    rows = [(name, escaped(text)) for name, text in told.comparisons]
    rows += [(name, _link(link)) for name, link in told.facts]
    parts += [_table("|---|---|", [("", ""), *rows])] if rows else []
    parts += ["Missing:\n\n" + "\n".join(f"- {escaped(each)}" for each in told.problems)] if told.problems else []
    return "\n\n".join(parts) + "\n"


def comment(told: Summary) -> str:
    """The Markdown below an invisible first line, by which the comment is found and replaced later."""
    return f"{MARKER}\n{markdown(told)}"


def text(told: Summary) -> str:
    """The summary as plain text, for a terminal."""
    lines = [plain(told.title), plain(told.sentence), *(f"- {plain(note)}" for note in told.notes)]
    if told.scores:
        lines += ["", _aligned(told.scores)]
    facts = [*told.comparisons,
             *((name, f"{link.text}  {link.url}" if link.url else link.text) for name, link in told.facts)]
    lines += ["", _aligned([(name, plain(value)) for name, value in facts])] if facts else []
    lines += ["", *(f"missing: {plain(each)}" for each in told.problems)] if told.problems else []
    return "\n".join(lines)


def escaped(value: str) -> str:
    """A text as one line of Markdown that shows exactly this text: no markup, no HTML, no link, no mention."""
    line = _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", _CALLING.sub(_GAP, plain(value)))
    return re.sub(r"^(?=[-+=]|\d+[.)])", _GAP, line)  # a list, a rule, a heading's underline


def plain(value: str) -> str:
    """A text as one line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _headline(found: RunResults) -> words.Headline:
    if found.is_stale:
        return words.never_decided(found.info, _ENDED[found.outcome])
    if found.report is None and not found.info:
        return words.NOTHING_FOUND
    if found.is_repeated:
        top = words.promoted_earlier(found.info)
    else:
        top = words.headline(found.report, found.info, found.comparison if found.is_judged else {},
                             is_judged=found.is_judged)
    if found.outcome == "success" or not found.is_judged:
        return top
    after = f"The pipeline {_ENDED[found.outcome]} afterwards, in a later stage or step."
    return replace(top, notes=(after, *top.notes))


def _scores(found: RunResults, report: EvaluationReport, compared: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    level = f"{words.percent(found.confidence)} interval" if found.confidence else "interval"
    copied = report.nearest_neighbour
    more = ("copied answers",) if copied else ()
    yield "", "value", level, "weight", "contribution", "best promoted", *more
    weights, promoted = compared.get("weights") or report.weights, compared.get("best_promoted")
    parts = compared.get("contributions") or {}
    values = {WEIGHTED: sum(parts.values()) if parts else report.weighted_score, **report.metrics.as_dict()}
    others = {WEIGHTED: promoted["score"], **promoted["metrics"]} if promoted else {}
    copies = copied.scores() if copied else {}
    for name in (WEIGHTED, *METRICS):
        interval = (found.intervals or {}).get(name)
        part = values[WEIGHTED] if name == WEIGHTED else parts.get(name, weights.get(name, 0) * values[name])
        yield (NAMES[name], f"{values[name]:.4f}", "{:.4f} to {:.4f}".format(*interval) if interval else "",
               "" if name == WEIGHTED else f"{weights[name]:g}", f"{part:.4f}", f"{others[name]:.4f}" if others else "",
               *([f"{copies[name]:.4f}"] if copied else []))


def _facts(found: RunResults) -> Iterator[tuple[str, Link]]:
    info = found.info if not found.is_stale else {}
    champion, hub = info.get("champion"), info.get("hub")
    if champion:
        before = f", before it version {info['previous_version']}" if info.get("previous_version") else ""
        yield "Champion", Link(f"{info.get('model_name')} version {champion['version']}{before}", _version_url(info))
    if hub:
        yield "Hub", Link(words.hub_commit(hub), f"{found.hub}/{hub['repo']}/commit/{hub['commit']}")
    elif champion:
        yield "Hub", Link("not pushed", None)
    if info.get("tracking_uri"):
        run = words.short(str(info.get("deployment_run")).partition(":")[0])  # of a dry run: `none: ...`
        yield "MLflow", Link(f"{info['tracking_uri']}, run {run}", None)
    if info.get("git_commit"):
        yield "Commit", Link(f"{info['git_commit']}{f' on {found.branch}' if found.branch else ''}", None)
    if info.get("actor"):
        yield "Asked by", Link(words.asked_by(info["actor"], info.get("stated_reason")), None)
    if found.is_repeated and info.get("ci_url"):
        yield "Promoted by", Link("an earlier run", str(info["ci_url"]))
    if found.page:
        yield "Report", Link(found.page, None)
    if found.ci_url:
        yield "Run", Link("log and artifacts", found.ci_url)


def _version_url(info: Mapping[str, Any]) -> str | None:
    uri = str(info.get("tracking_uri", ""))
    if not uri.startswith(("http://", "https://")):
        return None
    name = quote(str(info.get("model_name")), safe="")
    return f"{uri.rstrip('/')}/#/models/{name}/versions/{info['champion']['version']}"


def _table(rule: str, rows: Sequence[Sequence[str]]) -> str:
    header, *lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join((header, rule, *lines))


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _link(link: Link) -> str:
    if link.url and _URL.fullmatch(link.url):
        return f"[{escaped(link.text)}]({link.url})"
    return escaped(link.text)
