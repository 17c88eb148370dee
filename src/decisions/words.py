"""Put decisions into words, for the records, the terminal, --explain, the report and the summary. Pure."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal

from src.core.params import METRIC_NAMES, METRICS
from src.core.records import EvaluationReport
from src.ledger.slots import LedgerView
from src.model_selection import Decision, GainEvidence, Policy, Question, Reason, ScoredRun, Verdict

Tone = Literal["good", "neutral", "warning", "bad"]

RESULTS = {Verdict.PROMOTE: "promoted", Verdict.KEEP: "kept", Verdict.ALREADY: "already",
           Verdict.REFUSED: "refused", Verdict.UNDECIDED: "undecided"}
NO_REASON = "no reason given"  # what the records hold then; nobody has to read it
_SAME = 1e-9  # scores are rounded to that
_DIGITS = (3, 6)  # the fewest and the most decimals that a score or gain is shown with
INCLUDES_ZERO = "includes 0, so the two models may be equally good"
NO_ANSWERS = "MLflow does not have the answers of the best promoted model"
# What a ledger entry did, by its kind.
KINDS = {"promote": "promoted", "force": "promoted by force", "rollback": "rolled back", "genesis": "adopted",
         "republish": "published again"}
_DRY_RUN = "This was a dry run: nothing outside the records was changed."
_FORCE = "`champion deploy --force-deploy --reason TEXT`"
# By the result in deployment_info.json: the word on the terminal, how it looks at a glance, and the heading.
_RESULT_WORDS: dict[str, tuple[str, Tone, str]] = {
    "promoted": ("PROMOTED", "good", "Promoted to champion"),
    "would_promote": ("WOULD BE PROMOTED", "good", "Would be promoted to champion"),
    "kept": ("NOT PROMOTED", "neutral", "Not promoted"),
    "already": ("NO CHANGE", "good", "Already the champion"),
    "refused": ("REFUSED", "bad", "Refused"),
    "undecided": ("NO DECISION", "warning", "No decision"),
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


def explain(decision: Decision, policy: Policy, ledger: LedgerView) -> str:
    """The reason of a decision in one line, as the records store it; ledger gives the versions of the models."""
    if decision.reason is Reason.FORCED:
        return f"without --force-deploy: {_set_aside(decision, policy, ledger)}"
    score, version = rounded(decision.score)[0], ledger.head.version if ledger.head else None
    words = {
        Reason.ALREADY: f"this model is already the champion, version {version} ({score})",
        Reason.BLOCKED: "a rollback blocked this model; only --force-deploy brings it back",
        Reason.NOT_PROMOTING_BRANCH: "this branch may not promote (deployment.promoting_branches); its score is "
                                     f"{score}",
        Reason.INCOMPARABLE: _incomparable(decision, ledger),
        Reason.FIRST_MODEL: "no model was promoted before it",
        Reason.GUARD: f"it fails the guard {decision.failed_guard} (score {score})",
    }
    return words.get(decision.reason) or _by_score(decision, policy, ledger)


def _by_score(decision: Decision, policy: Policy, ledger: LedgerView) -> str:
    to_beat, gain, evidence = decision.to_beat, decision.gain, decision.evidence
    rival = to_beat.best_evaluated if decision.reason is Reason.NOT_BEST else to_beat.best_promoted
    if rival is None:
        raise AssertionError(f"{decision.reason} compares two models")
    other = policy.score(rival)
    difference = decision.score - other
    score, theirs, by, _ = rounded(decision.score, other, abs(difference), policy.threshold)
    name = _named(rival, decision, ledger)
    side = "above" if difference > 0 else "below"
    words = f"score {score} is {by} {side} {name} ({theirs})" if difference else f"score {score} equals that of {name}"
    if decision.reason is Reason.BELOW_THRESHOLD:
        return f"{words}; the threshold is {policy.threshold}"
    if decision.reason is Reason.WITHIN_NOISE and evidence:
        return f"{words}, but the {_interval(evidence)} {INCLUDES_ZERO}"
    if alone := blocker(decision, policy):
        best = _named(to_beat.best_promoted, decision, ledger) if to_beat.best_promoted else "the champion"
        return (f"{words}, but it is {rounded(gain or Decimal())[0]} above {best}: only that model is in the way; "
                "decide about it with --promote, or take it out of the comparison with --exclude: "
                f"`champion history --promote {short(alone.run_id)}`")
    return words


def _set_aside(decision: Decision, policy: Policy, ledger: LedgerView) -> str:
    if decision.overrode in (None, Reason.INCOMPARABLE):
        return "it could not be compared with the champion"
    return explain(replace(decision, reason=decision.overrode, overrode=None), policy, ledger)


def _incomparable(decision: Decision, ledger: LedgerView) -> str:
    if ledger.head is None:
        return ("the Hub has a release that the ledger does not know; `champion status` shows it, `champion status "
                f"--adopt` makes it the champion, {_FORCE} promotes without a comparison")
    if decision.to_beat.champion is None:
        return (f"the champion, version {ledger.head.version}, has no score on this test set; `champion status` shows "
                f"its state, {_FORCE} promotes without a comparison")
    return (f"the gain has no interval, and deployment.significance requires one: {NO_ANSWERS}; evaluate that model "
            f"again, or {_FORCE}")


def _named(run: ScoredRun, decision: Decision, ledger: LedgerView) -> str:
    versions = {slot.model_digest: slot.version for slot in ledger.slots}
    champion = decision.to_beat.champion
    if run.model_digest not in versions:
        return "an earlier model that was not promoted"
    version = f"version {versions[run.model_digest]}"
    is_champion = champion is not None and champion.model_digest == run.model_digest
    return f"the champion, {version}" if is_champion else f"{version}, the best promoted model"


def rounded(*values: Decimal | float, sign: str = "") -> list[str]:
    """Scores or gains as texts, all with the fewest decimals (3 to 6) that keep different ones apart, and off 0.

    sign: `+` shows the sign of positive ones too.
    """
    exact = [Decimal(str(value)) for value in values]
    for digits in range(_DIGITS[0], _DIGITS[1] + 1):
        texts = [f"{value:{sign}.{digits}f}" for value in exact]
        if len(set(texts)) == len(set(exact)) and all(float(text) or not value
                                                      for text, value in zip(texts, exact, strict=True)):
            break
    return texts


def short(name: str) -> str:
    """An id as it is shown to people: its first eight characters."""
    return name[:8]


def result_words(result: str) -> str:
    """The result of a deployment, a rollback or a repair as a person says it: `not promoted`."""
    return _RESULT_WORDS[result][0].lower() if result in _RESULT_WORDS else result.replace("_", " ")


def decision_words(decision: str, reason: str) -> str:
    """A recorded verdict and its reason in words: `not promoted (not best)`."""
    result = RESULTS[Verdict(decision)] if decision in set(Verdict) else decision
    return f"{result_words(result)} ({reason.replace('_', ' ')})"


def asked_by(actor: object, reason: object) -> str:
    """Who, and why if a reason was given: `ana@laptop: it is faster`."""
    return f"{actor}: {reason}" if reason and reason != NO_REASON else str(actor)


def version_description(decision: Decision, policy: Policy, report: EvaluationReport, ledger: LedgerView, commit: str
                        ) -> str:
    """What the registry shows beside a version: score, reason, gain with its interval or threshold, commit and run."""
    score, gain = rounded(decision.score)[0], ""
    if decision.gain is not None:
        evidence = decision.evidence
        sure = _interval(evidence) if evidence else "no interval"
        gain = f" Gain over the best promoted model: {rounded(decision.gain, sign='+')[0]} ({sure})."
    return (f"Score {score} on {report.rows} evaluated rows.{gain} Decision: {decision.verdict} ({decision.reason}), "
            f"{explain(decision, policy, ledger)}. Code at commit {short(commit)}. Evaluated in MLflow run "
            f"{report.run_id}")


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
    """Everything that a decision depends on, one line each, as `champion history --explain` prints it."""
    policy, to_beat, evidence = question.policy, decision.to_beat, question.evidence
    head, gain = question.ledger.head, decision.gain
    champion = f"the champion is version {head.version}" if head else "no model was promoted before"
    reached = "reached" if gain is not None and gain >= policy.threshold else "not reached"
    contract = question.challenger.contract
    rows = {
        "situation": f"{champion}; {_models(to_beat.runs, to_beat.complete)} on the same test set (contract "
                     f"{short(contract)}){_challenger(question)}",
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
    label = _label(RESULTS[decision.verdict], decision.reason)
    title = f"{label} ({decision.reason}): {explain(decision, policy, question.ledger)}"
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


def verdict(info: Mapping[str, Any], compared: Mapping[str, Any]) -> str:
    """What was decided, in one sentence without its full stop.

    info and compared are the content of deployment_info.json and model_comparison.json; compared may be empty.
    """
    if info["result"] not in ("promoted", "would_promote"):
        return str(info["explanation"])
    would = info["result"] == "would_promote"
    now = info["model_name"] if would else f"{info['model_name']} version {info['version']}"
    before, gain, evidence = _replaced(info), compared.get("improvement"), _evidence_in(compared)
    numbers = [] if gain is None else [gain, *([evidence.low, evidence.high] if evidence else [])]
    score, *_ = rounded(info["weighted_score"], *numbers)
    if before is None:
        return f"it would be the first {now} (score {score})" if would else f"first model, now {now} (score {score})"
    words = f"it would replace {now} version {before}" if would else f"{now} replaces version {before}"
    words += f": score {score}"
    if gain is None:
        return words
    _, by, *bounds = rounded(info["weighted_score"], *numbers, sign="+")
    words += f", gain {by}{'' if _replaces_best(compared) else ' over the best promoted model'}"
    return f"{words} ({percent(evidence.confidence)} interval {' to '.join(bounds)})" if evidence else words


def terminal_summary(info: Mapping[str, Any], compared: Mapping[str, Any], records: object | None,
                     notes: Iterable[str] = ()) -> str:
    """What the deployment prints at its end: the verdict, then what the reader needs next.

    info and compared are the content of deployment_info.json and model_comparison.json, records their folder, None if
    nothing was written. notes: sentences about this decision that the records do not give.
    """
    hub, run = info["hub"], str(info["deployment_run"])
    metrics = ", ".join(f"{METRIC_NAMES[name]} {value:.3f}" for name, value in compared["metrics"].items())
    rows = [
        *(("note", note) for note in (*_notes_on_decision(info, compared), *notes)),
        ("metrics", metrics),
        ("Hub", hub_commit(hub) if hub else "not pushed"),
        ("files", str(records) if records else "nothing was written; a dry run writes only into --output-dir"),
        ("MLflow", info["tracking_uri"] if _is_dry(info) else f"{info['tracking_uri']}, run {short(run)}"),
    ]
    return "\n".join([verdict_line(info, compared), *(f"  {name:7}  {text}" for name, text in rows)])


def verdict_line(info: Mapping[str, Any], compared: Mapping[str, Any]) -> str:
    """The verdict with its label: the first line on the terminal, and the last of the deployment's log."""
    return f"{_label(info['result'], info['reason'])}: {verdict(info, compared)}"


def comparisons(compared: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The lines of a model_comparison.json for the summary, as name and text; names are those of the models in it.

    A model with several of the names has one line.
    """
    roles: dict[str, list[str]] = {}
    sides = {key: compared[key] for key in names if compared.get(key)}
    for key, side in sides.items():
        roles.setdefault(side["run_id"], []).append(names[key])
    for run_id, side in {side["run_id"]: side for side in sides.values()}.items():
        score, delta = rounded(side["score"], side["delta"])
        ahead = f"the challenger is {delta.lstrip('-')} {'above' if side['delta'] > 0 else 'below'}"
        yield ", ".join(roles[run_id]), (f"{score}, {ahead if side['delta'] else 'as the challenger'}, MLflow run "
                                         f"{short(run_id)}")
    if compared.get("improvement") is not None:
        yield "gain", (f"{rounded(compared['improvement'], sign='+')[0]} over the best promoted; threshold "
                       f"{compared['threshold']:g}")
    if evidence := _evidence_in(compared):
        yield "interval of the gain", f"{_range(evidence)}; {_chance(evidence)}"


def hub_commit(hub: Mapping[str, Any]) -> str:
    """A repository and the commit of a release in it."""
    return f"{hub['repo']}, commit {short(hub['commit'])}"


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
        ended = f"It ended with exit code {info.get('code')} ({info.get('result')}): {info.get('reason')}"
        return Headline("bad", "The deployment did not finish", ended, rows)
    if report is None:
        return Headline("warning", "No evaluation", "The last decision is about a model whose evaluation is not in "
                        "results/evaluations; run `dvc repro evaluation`.")
    if "decision" not in info:  # a rollback, a repair or an adoption
        who = f" by {asked_by(info['actor'], info.get('stated_reason'))}" if info.get("actor") else ""
        return Headline("neutral", "No decision on this model", f"The last change: "
                        f"{str(info.get('result')).replace('_', ' ')}{who}. Run `dvc repro deployment` to decide.")
    if not is_judged:
        return Headline("warning", "No decision on this model", "The last decision was about another model or another "
                        "test set; run `dvc repro deployment`.", rows)
    _, tone, heading = _RESULT_WORDS[info["result"]]
    said = verdict(info, compared)
    sentence = said if said.startswith(info["model_name"]) else said[:1].upper() + said[1:]
    if _is_forced(info["result"], info["reason"]):
        heading = f"{heading} by force"
    return Headline(tone, heading, f"{sentence}.",
                    (*([_DRY_RUN] if _is_dry(info) else []), *_notes_on_decision(info, compared),
                     *_notes_on_evidence(compared), *rows, *_notes_on_hub(info)))


def never_decided(info: Mapping[str, Any], ended: str) -> Headline:
    """The headline of a pipeline that ended (`failed`, ...) before its deployment; info is an earlier run's."""
    label = _RESULT_WORDS.get(str(info.get("result")), (str(info.get("result")),))[0].lower()
    note = f"results/deployment holds the decision of an earlier run: {label}, {info.get('explanation')}."
    return Headline("bad", "No decision", f"The pipeline {ended} before the gate decided, so the champion is the same "
                    "as before. The log names the stage and what to do.", (note,))


def promoted_earlier(info: Mapping[str, Any]) -> Headline:
    """The headline of a run that found its model promoted by an earlier run."""
    return Headline("good", "Already the champion", "There was nothing to do: an earlier run promoted this model, as "
                    f"version {info['version']}.")


def _label(result: str, reason: str) -> str:
    return _RESULT_WORDS[result][0] + (" BY FORCE" if _is_forced(result, reason) else "")


def _is_forced(result: str, reason: str) -> bool:
    return reason == Reason.FORCED and result in ("promoted", "would_promote")


def _replaced(info: Mapping[str, Any]) -> int | None:
    """The version of the champion that a promotion replaced, or that a dry run's would replace; None if none was."""
    is_dry = info["result"] == "would_promote"
    return (info["champion"] or {}).get("version") if is_dry else info["previous_version"]


def _evidence_in(compared: Mapping[str, Any]) -> GainEvidence | None:
    return GainEvidence(**compared["significance"]) if compared.get("significance") else None


def _replaces_best(compared: Mapping[str, Any]) -> bool:
    """True if the replaced champion is the best promoted model too, so that the gain is over it."""
    champion, best = compared.get("champion"), compared.get("best_promoted")
    return not champion or not best or champion["model_digest"] == best["model_digest"]


def _interval(evidence: GainEvidence) -> str:
    low, high = rounded(evidence.low, evidence.high, sign="+")
    return f"{percent(evidence.confidence)} interval {low} to {high}"


def _range(evidence: GainEvidence) -> str:
    low, high = rounded(evidence.low, evidence.high, sign="+")
    return f"{low} to {high} at {percent(evidence.confidence)} on {evidence.rows} rows"


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
    return f"{'' if complete else 'at least '}{count} other model{'' if count == 1 else 's'}"


def _run(run: ScoredRun | None, question: Question) -> str:
    if run is None:
        return "none"
    versions = [slot.version for slot in question.ledger.slots if slot.model_digest == run.model_digest]
    status = f"version {versions[-1]}" if versions else "never promoted"
    return f"{question.policy.score(run):.6f}  {status}, MLflow run {short(run.run_id)}"


def _force(question: Question, decision: Decision) -> str:
    if not question.force:
        return "not asked for"
    return f"asked for, and overrode the reason {decision.overrode}" if decision.overrode else "asked for, not needed"


def _is_dry(info: Mapping[str, Any]) -> bool:
    return str(info["deployment_run"]).startswith("none")


def _notes_on_decision(info: Mapping[str, Any], compared: Mapping[str, Any]) -> Iterator[str]:
    """What the verdict leaves out and the reader must know: a force, and a gain that may be noise."""
    if info["overrode"]:
        yield f"Forced by {asked_by(info['actor'], info['stated_reason'])}; {info['explanation']}."
    if info["result"] not in ("promoted", "would_promote") or not compared.get("best_promoted"):
        return
    evidence = _evidence_in(compared)
    if evidence is None:
        yield f"The gain has no interval: {NO_ANSWERS}."
    elif evidence.includes_zero:
        kept = "" if info["overrode"] else (f"; with deployment.significance: require, version {_replaced(info)} would "
                                            "have stayed the champion")
        yield f"The interval {INCLUDES_ZERO}{kept}."


def _notes_on_evidence(compared: Mapping[str, Any]) -> Iterator[str]:
    if evidence := _evidence_in(compared):
        yield (f"With {evidence.rows} evaluated rows, a true gain of {rounded(evidence.minimum_detectable_gain)[0]} is "
               "found four times in five; smaller ones need more rows.")
    if compared.get("runs_complete") is False:
        yield f"The history is long: {_models(compared['runs_compared'], complete=False)} were compared."


def _notes_on_rows(report: EvaluationReport) -> tuple[str, ...]:
    found = [(report.truncated_rows, "answers cut at the token limit"), (report.empty_rows, "empty answers"),
             (report.overlap_rows, "questions that are in the training split too"),
             (report.answer_overlap_rows, "reference answers that are in the training split too")]
    parts = [f"{what}: {count}" for count, what in found if count]
    notes = [f"Of {report.rows} evaluated rows, {'; '.join(parts)}."] if parts else []
    return (*notes, *filter(None, [report.neighbour_warning(), report.tokenizer_warning()]))


def _notes_on_hub(info: Mapping[str, Any]) -> Iterator[str]:
    if info["result"] == "promoted":
        yield f"Published as {hub_commit(info['hub'])}." if info["hub"] else "Not pushed to the Hub."
