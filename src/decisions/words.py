"""Put decisions into words, for the records, the terminal, --explain, the report and the summary. Pure."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from src.core.params import METRICS
from src.core.records import EvaluationReport
from src.model_selection import Decision, GainEvidence, Policy, Question, Reason, ScoredRun, Verdict

Tone = Literal["good", "neutral", "warning", "bad"]

RESULTS = {Verdict.PROMOTE: "promoted", Verdict.KEEP: "kept", Verdict.ALREADY: "already",
           Verdict.REFUSED: "refused", Verdict.UNDECIDED: "undecided"}
_SAME = 1e-9  # scores are rounded to that
INCLUDES_ZERO = "includes 0, so the two may be equally good"
NO_ANSWERS = "the answers of the best promoted model were not at hand"
_REASONS = {
    Reason.ALREADY: "this very model is the champion already",
    Reason.BLOCKED: "a rollback blocked this model; only --force-deploy brings it back",
    Reason.FORCED: "forced, setting aside: {overrode}",
    Reason.NOT_PROMOTING_BRANCH: "this branch may not promote (deployment.promoting_branches)",
    Reason.INCOMPARABLE: "the champion, or the release on the Hub, cannot be compared with it; run `python "
                         "scripts/status_script.py`, and with --adopt if the Hub has a release that the ledger lacks; "
                         "--force-deploy promotes without the comparison",
    Reason.FIRST_MODEL: "nothing was promoted before",
    Reason.NOT_BEST: "it is not above the best evaluated model ({best}){alone}",
    Reason.BELOW_THRESHOLD: "its gain of {gain} is below the threshold of {threshold}",
    Reason.GUARD: "it fails the guard {guard}",
    Reason.WITHIN_NOISE: "its gain of {gain} is within the noise of the evaluation",
    Reason.IMPROVED: "its gain of {gain} reaches the threshold of {threshold}",
}
_ALONE = ("; that model was never promoted and alone stands in the way of a gain of {gain} over the best promoted one: "
          "`python scripts/history_script.py --promote {run}` brings it through the gate, --exclude takes it out")
# By the result in deployment_info.json: how it reads at a glance, the heading, and how its sentence begins.
_HEADLINES: dict[str, tuple[Tone, str, str]] = {
    "promoted": ("good", "Promoted to champion", "The challenger is now version {version} of {model_name}"),
    "would_promote": ("good", "Promoted to champion", "It would be promoted"),
    "kept": ("neutral", "Not promoted", "The challenger was not promoted"),
    "already": ("good", "Already the champion", "Nothing was to be done"),
    "refused": ("bad", "Refused", "The challenger may not be promoted"),
    "undecided": ("warning", "Undecided", "It could not be decided"),
}


@dataclass(frozen=True)
class Headline:
    """The top of the report and of the summary; notes are whole sentences."""

    tone: Tone
    heading: str
    sentence: str
    notes: tuple[str, ...] = ()


NOTHING_FOUND = Headline("bad", "Nothing to summarise", "results/ holds no evaluation and no decision; run `dvc "
                         "repro`, or look at the log for the stage that failed.")


def explain(decision: Decision, policy: Policy) -> str:
    """The reason of a decision in one line, as the records store it."""
    best, alone = decision.to_beat.best_evaluated, blocker(decision, policy)
    return _REASONS[decision.reason].format(
        overrode=decision.overrode.value if decision.overrode else "",
        best=f"{policy.score(best):.4f}, run {best.run_id}" if best else "",
        alone=_ALONE.format(gain=signed(decision.gain), run=alone.run_id) if alone else "",
        gain=signed(decision.gain),
        threshold=policy.threshold,
        guard=decision.failed_guard,
    )


def version_description(decision: Decision, policy: Policy, report: EvaluationReport, commit: str) -> str:
    """What the registry shows beside a version: score, reason, gain with its interval or threshold, run and commit."""
    gain = ""
    if decision.gain is not None:
        evidence = decision.evidence
        sure = "no interval"
        if evidence:
            sure = f"{100 * evidence.confidence:g} % interval {evidence.low:+.6f} to {evidence.high:+.6f}"
        gain = f" Gain over the best promoted: {signed(decision.gain)} ({sure}; threshold {policy.threshold})."
    return (f"Weighted score {decision.score:.6f} on {report.rows} evaluated rows.{gain} Decision: {decision.verdict} "
            f"({decision.reason}), {explain(decision, policy)}. Evaluated in MLflow run {report.run_id}; code at "
            f"commit {commit[:12]}.")


def blocker(decision: Decision, policy: Policy) -> ScoredRun | None:
    """The best evaluated run, if it was never promoted and alone keeps the challenger from winning; else None."""
    gain = decision.gain
    is_alone = decision.reason is Reason.NOT_BEST and gain is not None and gain > 0 and gain >= policy.threshold
    return decision.to_beat.best_evaluated if is_alone else None


def percent(confidence: float) -> str:
    """A confidence in percent, never rounded to 100: its distance to 100 keeps two digits, as in `99.976 %`."""
    left_out = max(100 * (1 - confidence), 1e-10)
    digits = max(0, 1 - math.floor(math.log10(left_out)))
    return f"{100 * confidence:.{digits}f}".rstrip("0").rstrip(".") + " %"


def signed(gain: Decimal | None) -> str:
    """A gain with its sign and six digits, or `none`."""
    return "none" if gain is None else f"{gain:+.6f}"


def interval(evidence: GainEvidence | None) -> str:
    """What the paired bootstrap says about the gain, in one line."""
    if evidence is None:
        return "none: there is no promoted model to pair the answers with"
    noise = INCLUDES_ZERO if evidence.includes_zero else "excludes 0"
    needed = f"; {evidence.rows_needed} rows would show the threshold" if evidence.rows_needed else ""
    return (f"{_range(evidence)}, {noise}; P(gain > 0) {evidence.p_gain_positive:.3f}, {_chance(evidence)}; "
            f"these rows show gains from {evidence.minimum_detectable_gain:.4f} on{needed}")


def policy_words(policy: Policy) -> str:
    """Weights, threshold and significance of a policy in one line."""
    weights = ", ".join(f"{weight:g} {name}" for name, weight in policy.weights.items())
    significance = "required" if policy.require_significance else "reported, not required"
    return f"{weights}; threshold {policy.threshold}; significance {significance}"


def explain_lines(question: Question, decision: Decision) -> list[str]:
    """Everything that a decision depends on, one line each, as history_script.py --explain prints it."""
    policy, to_beat, evidence = question.policy, decision.to_beat, question.evidence
    head, gain = question.ledger.head, decision.gain
    champion = f"champion is version {head.version}" if head else "nothing was promoted before"
    reached = "reached" if gain is not None and gain >= policy.threshold else "not reached"
    rows = {
        "situation": f"{_models(to_beat.runs, to_beat.complete)} under contract {question.challenger.contract[:12]}; "
                     f"{champion}{_challenger(question)}",
        "policy": policy_words(policy),
        "challenger": _run(question.challenger, question),
        "best evaluated": _run(to_beat.best_evaluated, question),
        "best promoted": _run(to_beat.best_promoted, question),
        "gain": f"{signed(gain)} over the best promoted",
        "interval": interval(evidence) if evidence or not to_beat.best_promoted else f"none: {NO_ANSWERS}",
        "threshold": f"{policy.threshold}: {reached if gain is not None else 'a first model has no gain to measure'}",
        "guard": question.failed_guard or "none fails",
        "force": _force(question, decision),
    }
    title = f"{RESULTS[decision.verdict].upper()} ({decision.reason}): {explain(decision, policy)}."
    return [title, *(f"  {name:14}  {text}" for name, text in rows.items())]


def untrue(truth: Mapping[str, float], claims: Mapping[str, Mapping[str, float]], source: str) -> list[str]:
    """Name everyone whose metrics differ from those of the answers, one line each; empty if all agree to 1e-9.

    claims: the metrics by who states them. source: whose answers they are. If all claims agree with each other and
    none with the answers, it is the answers that were changed.
    """
    wrong = {party: next((name for name in METRICS if not _agree(stated.get(name), truth[name])), None)
             for party, stated in claims.items()}
    names = set(wrong.values())
    if len(claims) > 1 and len(names) == 1 and None not in names:
        name = str(names.pop())
        said = {party: stated.get(name) for party, stated in claims.items()}
        if all(_agree(value, next(iter(said.values()))) for value in said.values()):
            told = f"the answers in {source} give {name} {truth[name]:.6f}, but {_sayings(said)}"
            return [f"{told}: the answers were changed"]
    lines = []
    for party, metric in wrong.items():
        if metric is not None:
            others = {other: stated.get(metric) for other, stated in claims.items() if other != party}
            own = _sayings({party: claims[party].get(metric)}, f" {metric}")
            lines.append(f"{own}, the answers in {source} give {truth[metric]:.6f}"
                         + (f"; {_sayings(others)}" if others else ""))
    return lines


def _agree(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and abs(one - other) <= _SAME


def _sayings(said: Mapping[str, float | None], metric: str = "") -> str:
    return ", ".join(f"{party} says{metric} {'nothing' if value is None else format(value, '.6f')}"
                     for party, value in said.items())


def terminal_summary(facts: Mapping[str, Any], compared: Mapping[str, Any], records: object | None) -> str:
    """What the deployment prints at its end: the decision, the numbers and where to look.

    facts and compared are the content of deployment_info.json and model_comparison.json, records their folder, None if
    nothing was written.
    """
    champion, hub = facts["champion"], facts["hub"]
    parts = ", ".join(f"{name} {value:.4f}" for name, value in compared["contributions"].items())
    return "\n".join((
        f"{facts['result'].upper()}: {facts['explanation']}.",
        f"  challenger  {facts['weighted_score']:.6f}  ({parts})",
        f"  best so far {_compared_score(compared['best_evaluated'])}",
        f"  promoted    {_compared_score(compared['best_promoted'])}",
        f"  champion    {facts['model_name']} version {champion['version']}" if champion else "  champion    none yet",
        f"  Hub         {hub_commit(hub) if hub else 'not pushed'}",
        f"  records     {records}/{{deployment_info.json,model_comparison.json,deployment_logs.txt}}" if records else
        "  records     nothing was written; a dry run writes records only with --output-dir",
        f"  MLflow      {facts['tracking_uri']}, run {facts['deployment_run']}",
    ))


def comparisons(compared: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The lines of a model_comparison.json for the summary, as name and text; names are those of the models in it."""
    for key, name in names.items():
        if compared.get(key):
            yield name, _compared_score(compared[key])
    if compared.get("improvement") is not None:
        yield "gain", f"{compared['improvement']:+.6f} over the best promoted; threshold {compared['threshold']:g}"
    if compared.get("significance"):
        evidence = GainEvidence(**compared["significance"])
        yield "interval of the gain", f"{_range(evidence)}; {_chance(evidence)}"


def hub_commit(hub: Mapping[str, Any]) -> str:
    """A repository and the commit of a release in it."""
    return f"{hub['repo']} at {hub['commit'][:12]}"


def headline(report: EvaluationReport | None, info: Mapping[str, Any], compared: Mapping[str, Any], *, is_judged: bool
             ) -> Headline:
    """The outcome of a deployment, for the top of the report and of the summary.

    info and compared are the content of deployment_info.json and model_comparison.json, empty if there is none;
    is_judged is False if info does not record a decision on the evaluated model.
    """
    rows = _notes_on_rows(report) if report else ()
    if not info:
        return Headline("warning", "No decision yet", "This model was evaluated, and no deployment has judged it.",
                        rows)
    if "champion" not in info:
        ended = f"It ended as {info.get('result')} with exit code {info.get('code')}: {info.get('reason')}"
        return Headline("bad", "The deployment did not finish", ended, rows)
    if report is None:
        return Headline("warning", "No evaluation", "The last decision is about a model whose evaluation is not in "
                        "results/evaluations; run `dvc repro evaluation`.")
    if "decision" not in info:  # a rollback, a repair or an adoption
        who = f" by {info['actor']}: {info.get('stated_reason')}" if info.get("actor") else ""
        return Headline("neutral", "No decision on this model", f"The last change was {info.get('result')}{who}; run "
                        "`dvc repro deployment`.")
    if not is_judged:
        return Headline("warning", "No decision on this model", "The last decision was about another model or another "
                        "score contract; run `dvc repro deployment`.", rows)
    return _judged(info, (*_notes_on_force(info), *_notes_on_evidence(info, compared), *rows, *_notes_on_hub(info)))


def never_decided(info: Mapping[str, Any], ended: str) -> Headline:
    """The headline of a pipeline that ended (`failed`, ...) before its deployment; info is an earlier run's."""
    note = f"What results/deployment says ({info.get('result')}: {info.get('explanation')}) is an earlier run's."
    return Headline("bad", "No decision", f"The pipeline {ended} before the gate decided; the champion is who it was. "
                    "The log names the stage and the remedy.", (note,))


def promoted_earlier(info: Mapping[str, Any]) -> Headline:
    """The headline of a run that found its model promoted by an earlier run."""
    return Headline("good", "Already the champion", "Nothing was to be done: this very model was promoted by an "
                    f"earlier run, as version {info['version']}.")


def _range(evidence: GainEvidence) -> str:
    return f"{evidence.low:+.6f} to {evidence.high:+.6f} at {percent(evidence.confidence)} on {evidence.rows} rows"


def _challenger(question: Question) -> str:
    """Which challenger since the last promotion it is, and how sure its gain has to be; empty if it was not counted."""
    if question.challengers is None:
        return ""
    evidence = question.evidence if question.policy.require_significance else None
    asked = f", whose gain must show at {percent(evidence.confidence)} confidence" if evidence else ""
    return f"; challenger {question.challengers} since the last promotion{asked}"


def _chance(evidence: GainEvidence) -> str:
    return f"P(gain >= threshold) {evidence.p_gain_at_least_threshold:.3f}"


def _models(count: int, complete: bool) -> str:
    return f"{'' if complete else 'at least '}{count} comparable models"


def _run(run: ScoredRun | None, question: Question) -> str:
    if run is None:
        return "none"
    versions = [slot.version for slot in question.ledger.slots if slot.model_digest == run.model_digest]
    status = f"version {versions[-1]}" if versions else "never promoted"
    return f"{question.policy.score(run):.6f}  run {run.run_id}, {status}"


def _force(question: Question, decision: Decision) -> str:
    if not question.force:
        return "not asked for"
    return f"asked for; set aside: {decision.overrode}" if decision.overrode else "asked for, not needed"


def _compared_score(side: Mapping[str, Any] | None) -> str:
    return "none" if side is None else f"{side['score']:.6f} (challenger {side['delta']:+.6f}), run {side['run_id']}"


def _judged(info: Mapping[str, Any], notes: tuple[str, ...]) -> Headline:
    tone, heading, opening = _HEADLINES[info["result"]]
    opening = opening.format(version=info["version"], model_name=info["model_name"])
    return Headline(tone, f"Dry run: {heading.lower()}" if _is_dry(info) else heading,
                    f"{opening}: {info['explanation']}.", notes)


def _is_dry(info: Mapping[str, Any]) -> bool:
    return str(info["deployment_run"]).startswith("none")


def _notes_on_force(info: Mapping[str, Any]) -> Iterator[str]:
    if _is_dry(info):
        yield "This was a dry run: nothing outside the records was changed."
    if info["overrode"]:
        yield (f"Forced by {info['actor']}; the comparison alone said {info['overrode']}. Stated reason: "
               f"{info['stated_reason']}.")


def _notes_on_evidence(info: Mapping[str, Any], compared: Mapping[str, Any]) -> Iterator[str]:
    best, promoted = compared.get("best_evaluated"), compared.get("best_promoted")
    beats_promoted = promoted and compared["improvement"] >= compared["threshold"]
    if info["reason"] == "not_best" and best and beats_promoted:
        yield (f"It beats the best promoted model; only run {best['run_id']}, which was never promoted, is in its "
               "way: history_script.py --promote brings that run through the gate, --exclude takes it out.")
    gain = GainEvidence(**compared["significance"]) if compared.get("significance") else None
    if gain and gain.includes_zero:
        yield (f"The interval of the gain {INCLUDES_ZERO}. {gain.rows} rows show a true gain of "
               f"{gain.minimum_detectable_gain:.4f} four times in five.")
    if not gain and promoted and info["result"] != "already":
        yield f"The gain has no interval: {NO_ANSWERS}."
    if compared.get("runs_complete") is False:
        yield f"The history is long: the best was taken over {_models(compared['runs_compared'], complete=False)}."


def _notes_on_rows(report: EvaluationReport) -> tuple[str, ...]:
    found = [(report.truncated_rows, "ran into the token limit"), (report.empty_rows, "were empty"),
             (report.overlap_rows, "have a question that stands in the training split too"),
             (report.answer_overlap_rows, "have a reference answer that stands in the training split too")]
    parts = [f"{count} {what}" for count, what in found if count]
    notes = [f"Of {report.rows} answers, {'; '.join(parts)}."] if parts else []
    return (*notes, *filter(None, [report.tokenizer_warning()]))


def _notes_on_hub(info: Mapping[str, Any]) -> Iterator[str]:
    if info["result"] == "promoted":
        yield f"Published as {hub_commit(info['hub'])}." if info["hub"] else "Not pushed to the Hub."
