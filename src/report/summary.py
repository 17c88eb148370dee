"""The summary of a pipeline run: what became of the challenger, decision first, from the records that there are.

Works on whatever lies in results/, after failures too: what is missing is said, and never guessed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from src.core.params import METRICS
from src.core.records import EvaluationReport
from src.decisions.words import Verdict, verdict
from src.report.charts import NAMES, SIDES, WEIGHTED

Outcome = Literal["success", "failure", "cancelled", "skipped"]
OUTCOMES: tuple[Outcome, ...] = ("success", "failure", "cancelled", "skipped")
_ENDED = {"failure": "failed", "cancelled": "was cancelled", "skipped": "did not run"}
_NOTHING = ("results/ holds no evaluation and no decision; run `dvc repro`, or look at the log for the stage that "
            "failed.")
MARKER = "<!-- champion -->"
_URL = re.compile(r"https?://[\w.~:/?#@!$&*+,;=%-]+", re.ASCII)
# Whatever begins Markdown, HTML, a formula or a table cell; `:` begins an address that GitHub would make a link.
_SPECIAL = re.compile(r"""[\\`*_{}\[\]<>|~&"'$!:@#]""")
# GitHub sends mail to @name and links #1; its own bots too keep it from that by a space of no width.
_CALLING = re.compile(r"(?<=[@#])(?=\w)")
_GAP = "\u200b"
_HEADER = ("", "value", "", "weight", "contribution", "best promoted")


@dataclass(frozen=True)
class Found:
    """What lies in results/, and where it was made. info and comparison are empty, report None where they are missing.

    intervals: name of METRICS or `weighted_score` to (low, high), None where the answers are not at hand.
    problems: why a record is missing, a line each. outcome: how the pipeline ended. ci_url: this very run's page.
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
    hub: str  # the Hub's address
    page: str | None  # where the report lies

    @property
    def is_stale(self) -> bool:
        """Whether the decision is an earlier run's: results/deployment is committed, and this run never came to it."""
        own = self.ci_url is not None and self.info.get("ci_url") == self.ci_url
        return self.outcome != "success" and "champion" in self.info and not own

    @property
    def is_repeated(self) -> bool:
        """Whether a promotion is an earlier run's: this one said `already`, and left the files as they were."""
        earlier = self.ci_url is not None and self.info.get("ci_url") != self.ci_url
        return self.is_judged and self.info.get("result") == "promoted" and earlier

    @property
    def is_judged(self) -> bool:
        """Whether the decision at hand is this run's, about the evaluated model."""
        report, judged = self.report, (self.info.get("model_digest"), self.info.get("contract"))
        return not self.is_stale and report is not None and judged == (report.model_digest, report.contract_digest)


@dataclass(frozen=True)
class Link:
    """A text, and where it leads to; None where that is not known."""

    text: str
    url: str | None


@dataclass(frozen=True)
class Line:
    """A metric; interval, weight and other (the best promoted model's) are empty where there is none."""

    name: str
    value: str
    interval: str
    weight: str
    contribution: str
    other: str


@dataclass(frozen=True)
class Summary:
    """What there is to say, in its order; every text is data, to be escaped for where it is shown."""

    title: str
    sentence: str
    notes: Sequence[str]
    level: str
    scores: Sequence[Line]
    comparisons: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, Link]]
    problems: Sequence[str]


def summary(found: Found) -> Summary:
    """The records in words."""
    told = _verdict(found)
    name = found.info.get("model_name")
    current = found.report if not found.is_stale else None
    compared = found.comparison if found.is_judged else {}
    return Summary(
        title=f"{told.heading}: {name}" if name else told.heading,
        sentence=told.sentence,
        notes=told.notes,
        level=f"{100 * found.confidence:g} % interval" if found.confidence else "interval",
        scores=list(_lines(current, compared, found.intervals or {})) if current else [],
        comparisons=list(_comparisons(compared)),
        facts=list(_facts(found)),
        problems=found.problems,
    )


def _verdict(found: Found) -> Verdict:
    if found.is_stale:
        note = (f"What results/deployment says ({found.info.get('result')}: {found.info.get('explanation')}) is an "
                "earlier run's.")
        return Verdict("bad", "No decision", f"The pipeline {_ENDED[found.outcome]} before the gate decided; the "
                       "champion is who it was. The log names the stage and the remedy.", (note,))
    if found.report is None and not found.info:
        return Verdict("bad", "Nothing to summarise", _NOTHING, ())
    told = _judged(found, found.report) if found.report else _unevaluated(found.info)
    if found.outcome == "success" or not found.is_judged:
        return told
    after = f"The pipeline {_ENDED[found.outcome]} afterwards, in a later stage or step."
    return Verdict(told.tone, told.heading, told.sentence, (after, *told.notes))


def _judged(found: Found, report: EvaluationReport) -> Verdict:
    if "champion" in found.info and "decision" not in found.info:
        return _changed_by_hand(found.info)
    if found.is_repeated:
        return Verdict("good", "Already the champion", "Nothing was to be done: this very model was promoted by an "
                       f"earlier run, as version {found.info['version']}.", ())
    return verdict(report, found.info, found.comparison if found.is_judged else {}, is_judged=found.is_judged)


def _changed_by_hand(info: Mapping[str, Any]) -> Verdict:
    """A rollback, a repair or an adoption."""
    who = f" by {info['actor']}: {info.get('stated_reason')}" if info.get("actor") else ""
    return Verdict("neutral", "No decision on this model", f"The last change was {info.get('result')}{who}; run "
                   "`dvc repro deployment`.", ())


def _unevaluated(info: Mapping[str, Any]) -> Verdict:
    if "champion" in info:
        return Verdict("warning", "No evaluation", "The last decision is about a model whose evaluation is not in "
                       "results/evaluations; run `dvc repro evaluation`.", ())
    return Verdict("bad", "The deployment did not finish",
                   f"It ended as {info.get('result')} with exit code {info.get('code')}: {info.get('reason')}", ())


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


def _comparisons(compared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, name in SIDES.items():
        if side := compared.get(key):
            yield name, f"{side['score']:.6f} (challenger {side['delta']:+.6f}), run {side['run_id']}"
    if compared.get("improvement") is not None:
        yield "gain", f"{compared['improvement']:+.6f} over the best promoted; threshold {compared['threshold']:g}"
    if gain := compared.get("significance"):
        yield "interval of the gain", (
            f"{gain['low']:+.6f} to {gain['high']:+.6f} at {100 * gain['confidence']:g} % on {gain['rows']} rows; "
            f"P(gain >= threshold) {gain['p_gain_at_least_threshold']:.3f}")


def _facts(found: Found) -> Iterator[tuple[str, Link]]:
    info = found.info if not found.is_stale else {}
    champion, hub = info.get("champion"), info.get("hub")
    uri = str(info.get("tracking_uri", ""))
    if champion:
        before = f", before it version {info['previous_version']}" if info.get("previous_version") else ""
        yield "Champion", Link(f"{info.get('model_name')} version {champion['version']}{before}", _version_url(info))
    if hub:
        url = f"{found.hub}/{hub['repo']}/commit/{hub['commit']}"
        yield "Hub", Link(f"{hub['repo']} at {hub['commit'][:12]}", url)
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


def markdown(told: Summary) -> str:
    """The summary for a job's page or a pull request."""
    parts = [f"## {escaped(told.title)}", escaped(told.sentence)]
    parts += ["\n".join(f"- {escaped(note)}" for note in told.notes)] if told.notes else []
    parts += [_score_table(told.scores, told.level)] if told.scores else []
    rows = [[name, escaped(text)] for name, text in told.comparisons]
    rows += [[name, _link(link)] for name, link in told.facts]
    parts += [_table(["", ""], rows, "|---|---|")] if rows else []
    parts += ["Missing:\n\n" + "\n".join(f"- {escaped(each)}" for each in told.problems)] if told.problems else []
    return "\n\n".join(parts) + "\n"


def comment(told: Summary) -> str:
    """The same with a first line that nobody sees, by which the comment is found again."""
    return f"{MARKER}\n{markdown(told)}"


def text(told: Summary) -> str:
    """The summary for a terminal."""
    lines = [plain(told.title), plain(told.sentence), *(f"- {plain(note)}" for note in told.notes)]
    if told.scores:
        rows = [_HEADER, *(_cells(line) for line in told.scores)]
        rows[0] = (*_HEADER[:2], told.level, *_HEADER[3:])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                        for row in rows)]
    facts = [*told.comparisons, *((name, _spelt(link)) for name, link in told.facts)]
    width = max((len(name) for name, _ in facts), default=0)
    lines += ["", *(f"{name:{width}}  {plain(value)}" for name, value in facts)] if facts else []
    lines += ["", *(f"missing: {plain(each)}" for each in told.problems)] if told.problems else []
    return "\n".join(lines)


def escaped(value: str) -> str:
    """A text as one line of Markdown that shows exactly it: no markup, no HTML, no link, no mention."""
    line = _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", _CALLING.sub(_GAP, plain(value)))
    return re.sub(r"^(?=[-+=]|\d+[.)])", _GAP, line)  # a list, a rule, a heading's underline


def plain(value: str) -> str:
    """A text as one line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _score_table(scores: Sequence[Line], level: str) -> str:
    return _table([*_HEADER[:2], level, *_HEADER[3:]], [list(_cells(line)) for line in scores],
                  "|---|--:|---|--:|--:|--:|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], rule: str) -> str:
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def _cells(line: Line) -> tuple[str, ...]:
    return line.name, line.value, line.interval, line.weight, line.contribution, line.other


def _link(link: Link) -> str:
    if link.url and _URL.fullmatch(link.url):
        return f"[{escaped(link.text)}]({link.url})"
    return escaped(link.text)


def _spelt(link: Link) -> str:
    return f"{link.text}  {link.url}" if link.url else link.text
