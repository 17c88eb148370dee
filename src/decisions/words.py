"""A recorded decision, taken again and put into plain words. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from src.core.records import EvaluationReport
from src.decisions.record import RESULTS, explain, signed
from src.model_selection import Decision, GainEvidence, Policy, Question, Reason, ScoredRun

Tone = Literal["good", "neutral", "warning", "bad"]


def differences(recorded: object, found: object) -> list[str]:
    """Where two JSON values differ, as `key.key: recorded ..., found ...`; empty where they are equal bit for bit."""
    sides = [{key: repr(value) for key, value in _leaves(side, "")} for side in (recorded, found)]
    keys = dict.fromkeys(key for side in sides for key in side)
    pairs = {key: [side.get(key, "nothing") for side in sides] for key in keys}
    return [f"{key}: recorded {left}, found {right}" for key, (left, right) in pairs.items() if left != right]


def words(question: Question, decision: Decision, challengers: int) -> list[str]:
    """Situation, bars, gain, interval, threshold, guard and force of a decision, one line each."""
    policy, bars = question.policy, decision.bars
    head = question.ledger.head
    champion = f"champion is version {head.version}" if head else "nothing was promoted before"
    least = "" if bars.complete else "at least "
    rows = {
        "situation": f"{least}{bars.runs} comparable models under contract {question.challenger.contract[:12]}; "
                     f"{champion}; challenger {challengers} since the last promotion",
        "policy": f"{_weights(policy)}; threshold {policy.threshold}; significance {_significance(policy)}",
        "challenger": _run(question.challenger, policy, question),
        "best evaluated": _run(bars.best_evaluated, policy, question),
        "best promoted": _run(bars.best_promoted, policy, question),
        "gain": f"{signed(decision.gain)} over the best promoted",
        "interval": interval(question.evidence) if question.evidence or not bars.best_promoted else
                    "none: the answers of the best promoted model were not at hand",
        "threshold": _threshold(decision, policy),
        "guard": question.failed_guard or "none fails",
        "force": _force(question, decision),
    }
    title = f"{RESULTS[decision.verdict].upper()} ({decision.reason}): {explain(decision, policy)}."
    return [title, *(f"  {name:14}  {text}" for name, text in rows.items())]


def interval(evidence: GainEvidence | None) -> str:
    """What the paired bootstrap says of the gain, in one line."""
    if evidence is None:
        return "none: there is no promoted model to pair the answers with"
    noise = "includes 0, so the two may be equally good" if evidence.includes_zero else "excludes 0"
    needed = f"; {evidence.rows_needed} rows would show the threshold" if evidence.rows_needed else ""
    return (f"{evidence.low:+.6f} to {evidence.high:+.6f} at {100 * evidence.confidence:g} % on {evidence.rows} rows, "
            f"{noise}; P(gain > 0) {evidence.p_gain_positive:.3f}, P(gain >= threshold) "
            f"{evidence.p_gain_at_least_threshold:.3f}; these rows show gains from "
            f"{evidence.minimum_detectable_gain:.4f} on{needed}")


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        items: list[tuple[Any, object]] = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        yield path, value
        return
    for key, inner in items:
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _run(run: ScoredRun | None, policy: Policy, question: Question) -> str:
    if run is None:
        return "none"
    versions = [s.version for s in question.ledger.slots if s.model_digest == run.model_digest]
    standing = f"version {versions[-1]}" if versions else "never promoted"
    return f"{policy.score(run):.6f}  run {run.run_id}, {standing}"


def _weights(policy: Policy) -> str:
    return ", ".join(f"{weight:g} {name}" for name, weight in policy.weights.items())


def _significance(policy: Policy) -> str:
    return "required" if policy.require_significance else "reported, not required"


def _threshold(decision: Decision, policy: Policy) -> str:
    if decision.gain is None:
        return f"{policy.threshold}: a first model has no gain to measure"
    return f"{policy.threshold}: {'reached' if decision.gain >= policy.threshold else 'not reached'}"


def _force(question: Question, decision: Decision) -> str:
    if not question.force:
        return "not asked for"
    return f"asked for; set aside: {decision.overrode}" if decision.reason is Reason.FORCED else "asked for, not needed"


@dataclass(frozen=True)
class Verdict:
    """The top of the page; notes are whole sentences."""

    tone: Tone
    heading: str
    sentence: str
    notes: tuple[str, ...]

_HEADINGS: dict[str, tuple[Tone, str]] = {
    "promoted": ("good", "Promoted to champion"),
    "would_promote": ("good", "Promoted to champion"),
    "kept": ("neutral", "Not promoted"),
    "already": ("good", "Already the champion"),
    "refused": ("bad", "Refused"),
    "undecided": ("warning", "Undecided"),
}

_NOT_JUDGED = "This model was evaluated, and no deployment has judged it."

_OF_ANOTHER = "The last decision was about another model or another score contract; run `dvc repro deployment`."


def verdict(report: EvaluationReport, info: Mapping[str, Any], compared: Mapping[str, Any], *, is_judged: bool
            ) -> Verdict:
    """What a deployment came to; is_judged is False where info tells of no decision on the evaluated model."""
    if not is_judged:
        return _undecided(info, tuple(_notes_on_rows(report)))
    tone, heading = _HEADINGS[info["result"]]
    notes = (*_notes_on_force(info), *_notes_on_evidence(info, compared), *_notes_on_rows(report), *_notes_on_hub(info))
    return Verdict(tone, f"Dry run: {heading.lower()}" if _is_dry(info) else heading, _sentence(info), notes)


def _undecided(info: Mapping[str, Any], notes: tuple[str, ...]) -> Verdict:
    if not info:
        return Verdict("warning", "No decision yet", _NOT_JUDGED, notes)
    if "decision" in info:
        return Verdict("warning", "No decision on this model", _OF_ANOTHER, notes)
    ended = f"It ended as {info.get('result')} with exit code {info.get('code')}: {info.get('reason')}"
    return Verdict("bad", "The deployment did not finish", ended, notes)


def _sentence(info: Mapping[str, Any]) -> str:
    became = f"The challenger is now version {info['version']} of {info['model_name']}"
    openings = {"promoted": "It would be promoted" if _is_dry(info) else became,
                "would_promote": "It would be promoted", "kept": "The challenger was not promoted",
                "already": "Nothing was to be done",
                "refused": "The challenger may not be promoted", "undecided": "It could not be decided"}
    return f"{openings[info['result']]}: {info['explanation']}."


def _is_dry(info: Mapping[str, Any]) -> bool:
    return str(info["deployment_run"]).startswith("none")


def _notes_on_force(info: Mapping[str, Any]) -> Iterator[str]:
    if _is_dry(info):
        yield "This was a dry run: nothing outside the records was changed."
    if info["overrode"]:
        yield (f"Forced by {info['actor']}; the comparison alone said {info['overrode']}. Stated reason: "
               f"{info['stated_reason']}.")


def _notes_on_hub(info: Mapping[str, Any]) -> Iterator[str]:
    hub = info["hub"]
    if info["result"] == "promoted" and not _is_dry(info):
        yield f"Published as {hub['repo']} at {hub['commit'][:12]}." if hub else "Not pushed to the Hub."


def _notes_on_evidence(info: Mapping[str, Any], compared: Mapping[str, Any]) -> Iterator[str]:
    best, promoted = compared.get("best_evaluated"), compared.get("best_promoted")
    beats_promoted = promoted and compared["improvement"] >= compared["threshold"]
    if info["reason"] == "not_best" and best and beats_promoted:
        yield (f"It beats the best promoted model; only run {best['run_id']}, which was never promoted, is in its "
               "way: history_script.py --promote brings that run through the gate, --exclude takes it out.")
    gain = compared.get("significance")
    if gain and gain["low"] <= 0 <= gain["high"]:
        yield (f"The interval of the gain includes 0: on {gain['rows']} rows a difference of this size can be chance. "
               f"So many rows show a true gain of {gain['minimum_detectable_gain']:.4f} four times in five.")
    if not gain and compared.get("best_promoted") and info["result"] != "already":
        yield "The gain has no interval: the answers of the best promoted model are not at hand."
    if compared.get("runs_complete") is False:
        yield f"The history is long: the best was taken over at least {compared['runs_compared']} models."


def _notes_on_rows(report: EvaluationReport) -> Iterator[str]:
    found = [(report.truncated_rows, "ran into the token limit"), (report.empty_rows, "were empty"),
             (report.overlap_rows, "have a question that stands in the training split too")]
    parts = [f"{count} {what}" for count, what in found if count]
    if parts:
        yield f"Of {report.rows} answers, {'; '.join(parts)}."
