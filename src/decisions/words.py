"""A recorded decision, taken again and put into plain words. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from src.deployment_record import RESULTS, explain, signed
from src.evidence import GainEvidence
from src.model_selection import Decision, Policy, Question, Reason, ScoredRun


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
