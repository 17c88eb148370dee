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
from src.decisions.record import is_about
from src.decisions.words import (
    Headline,
    comparisons,
    headline,
    hub_commit,
    never_decided,
    nothing_found,
    promoted_earlier,
)
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
class Line:
    """One line of the score table; interval, weight and other (the best promoted model's value) may be empty."""

    name: str
    value: str
    interval: str
    weight: str
    contribution: str
    other: str


@dataclass(frozen=True)
class Summary:
    """The content of a summary, in the order in which it is shown; every text must be escaped where it is shown."""

    title: str
    sentence: str
    notes: Sequence[str]
    level: str
    scores: Sequence[Line]
    comparisons: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, Link]]
    problems: Sequence[str]


def summary(found: RunResults) -> Summary:
    """Summarise the records of a run."""
    top = _headline(found)
    name = found.info.get("model_name")
    current = found.report if not found.is_stale else None
    compared = found.comparison if found.is_judged else {}
    return Summary(
        title=f"{top.heading}: {name}" if name else top.heading,
        sentence=top.sentence,
        notes=top.notes,
        level=f"{100 * found.confidence:g} % interval" if found.confidence else "interval",
        scores=list(_lines(current, compared, found.intervals or {})) if current else [],
        comparisons=list(comparisons(compared, SIDES)),
        facts=list(_facts(found)),
        problems=found.problems,
    )


def markdown(told: Summary) -> str:
    """The summary as Markdown, for the page of a job or a pull request."""
    parts = [f"## {escaped(told.title)}", escaped(told.sentence)]
    parts += ["\n".join(f"- {escaped(note)}" for note in told.notes)] if told.notes else []
    parts += [_score_table(told.scores, told.level)] if told.scores else []
    rows = [[name, escaped(text)] for name, text in told.comparisons]
    rows += [[name, _link(link)] for name, link in told.facts]
    parts += [_table(["", ""], rows, "|---|---|")] if rows else []
    parts += ["Missing:\n\n" + "\n".join(f"- {escaped(each)}" for each in told.problems)] if told.problems else []
    return "\n\n".join(parts) + "\n"


def comment(told: Summary) -> str:
    """The Markdown below an invisible first line, by which the comment is found and replaced later."""
    return f"{MARKER}\n{markdown(told)}"


def text(told: Summary) -> str:
    """The summary as plain text, for a terminal."""
    lines = [plain(told.title), plain(told.sentence), *(f"- {plain(note)}" for note in told.notes)]
    if told.scores:
        lines += ["", _aligned([_header(told.level), *map(_cells, told.scores)])]
    facts = [*told.comparisons, *((name, _spelt(link)) for name, link in told.facts)]
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


def _headline(found: RunResults) -> Headline:
    if found.is_stale:
        return never_decided(found.info, _ENDED[found.outcome])
    if found.report is None and not found.info:
        return nothing_found()
    if found.is_repeated:
        top = promoted_earlier(found.info)
    else:
        top = headline(found.report, found.info, found.comparison if found.is_judged else {},
                       is_judged=found.is_judged)
    if found.outcome == "success" or not found.is_judged:
        return top
    after = f"The pipeline {_ENDED[found.outcome]} afterwards, in a later stage or step."
    return replace(top, notes=(after, *top.notes))


def _lines(report: EvaluationReport, compared: Mapping[str, Any], intervals: Mapping[str, tuple[float, float]]
           ) -> Iterator[Line]:
    weights = compared.get("weights") or report.weights
    parts = compared.get("contributions") or {}
    promoted = compared.get("best_promoted") or {}
    values = {WEIGHTED: sum(parts.values()) if parts else report.weighted_score, **report.metrics.as_dict()}
    others = {WEIGHTED: promoted["score"], **promoted["metrics"]} if promoted else {}
    for name in (WEIGHTED, *METRICS):
        low, high = intervals.get(name, (None, None))
        part = values[WEIGHTED] if name == WEIGHTED else parts.get(name, weights.get(name, 0) * values[name])
        yield Line(
            name=NAMES[name], value=f"{values[name]:.4f}",
            interval="" if low is None else f"{low:.4f} to {high:.4f}",
            weight="" if name == WEIGHTED else f"{weights[name]:g}", contribution=f"{part:.4f}",
            other=f"{others[name]:.4f}" if others else "",
        )


def _facts(found: RunResults) -> Iterator[tuple[str, Link]]:
    info = found.info if not found.is_stale else {}
    champion, hub = info.get("champion"), info.get("hub")
    uri = str(info.get("tracking_uri", ""))
    if champion:
        before = f", before it version {info['previous_version']}" if info.get("previous_version") else ""
        yield "Champion", Link(f"{info.get('model_name')} version {champion['version']}{before}", _version_url(info))
    if hub:
        url = f"{found.hub}/{hub['repo']}/commit/{hub['commit']}"
        yield "Hub", Link(hub_commit(hub), url)
    elif champion:
        yield "Hub", Link("not pushed", None)
    if uri:
        yield "MLflow", Link(f"{uri}, run {info.get('deployment_run')}", None)
    if info.get("git_commit"):
        yield "Commit", Link(f"{info['git_commit']}{f' on {found.branch}' if found.branch else ''}", None)
    if info.get("actor"):
        yield "Asked by", Link(f"{info['actor']}: {info.get('stated_reason')}", None)
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


def _score_table(scores: Sequence[Line], level: str) -> str:
    return _table(_header(level), [_cells(line) for line in scores], "|---|--:|---|--:|--:|--:|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], rule: str) -> str:
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _header(level: str) -> tuple[str, ...]:
    return "", "value", level, "weight", "contribution", "best promoted"


def _cells(line: Line) -> tuple[str, ...]:
    return line.name, line.value, line.interval, line.weight, line.contribution, line.other


def _link(link: Link) -> str:
    if link.url and _URL.fullmatch(link.url):
        return f"[{escaped(link.text)}]({link.url})"
    return escaped(link.text)


def _spelt(link: Link) -> str:
    return f"{link.text}  {link.url}" if link.url else link.text
