"""A deployment in plain words: what happened, why, and what to keep in mind."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from src.records import EvaluationReport

Tone = Literal["good", "neutral", "warning", "bad"]


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
