"""A decision as JSON and as words: deployment_info.json, model_comparison.json and the summary on the screen."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from src.core.records import EvaluationReport, FineTunedModel, Metrics, contributions, digest_of
from src.ledger.slots import LedgerView, parse_slots
from src.model_selection import Decision, GainEvidence, Policy, Question, Reason, ScoredRun, Verdict

RESULTS = {
    Verdict.PROMOTE: "promoted",
    Verdict.KEEP: "kept",
    Verdict.ALREADY: "already",
    Verdict.REFUSED: "refused",
    Verdict.UNDECIDED: "undecided",
}
_WORDS = {
    Reason.ALREADY: "this very model is the champion already",
    Reason.BLOCKED: "a rollback blocked this model; only --force-deploy brings it back",
    Reason.FORCED: "forced, setting aside: {overrode}",
    Reason.NOT_PROMOTING_BRANCH: "this branch may not promote (deployment.promoting_branches)",
    Reason.INCOMPARABLE: "the champion, or the release on the Hub, cannot be compared with it",
    Reason.FIRST_MODEL: "nothing was promoted before",
    Reason.NOT_BEST: "it is not above the best evaluated model ({best}){alone}",
    Reason.BELOW_THRESHOLD: "its gain of {gain} is below the threshold of {threshold}",
    Reason.GUARD: "it fails the guard {guard}",
    Reason.WITHIN_NOISE: "its gain of {gain} is within the noise of the evaluation",
    Reason.IMPROVED: "its gain of {gain} reaches the threshold of {threshold}",
}
_ALONE = ("; that model was never promoted and alone stands in the way of a gain of {gain} over the best promoted one: "
          "`python scripts/history_script.py --promote {run}` brings it through the gate, --exclude takes it out")


@dataclass(frozen=True)
class Request:
    """Who asked for a decision about what, and how; reason is empty where none was given."""

    report: EvaluationReport
    model: FineTunedModel
    policy: Policy
    model_name: str
    registry: str  # deployment.registry
    force: bool
    actor: str
    reason: str
    git_commit: str
    ci_url: str | None
    tracking_uri: str
    hub_repo: str | None

    @property
    def challenger(self) -> ScoredRun:
        """The challenger as the gate sees it."""
        report = self.report
        return ScoredRun(report.run_id, report.model_digest, report.contract_digest, report.metrics, 0)

    @property
    def key(self) -> str:
        """The promotion key."""
        return self.report.model.key(self.report.contract_digest)


def explain(decision: Decision, policy: Policy) -> str:
    """Why, in one line of plain words."""
    best, alone = decision.bars.best_evaluated, blocker(decision, policy)
    return _WORDS[decision.reason].format(
        overrode=decision.overrode.value if decision.overrode else "",
        best=f"{policy.score(best):.4f}, run {best.run_id}" if best else "",
        alone=_ALONE.format(gain=signed(decision.gain), run=alone.run_id) if alone else "",
        gain=signed(decision.gain),
        threshold=policy.threshold,
        guard=decision.failed_guard,
    )


def blocker(decision: Decision, policy: Policy) -> ScoredRun | None:
    """The best evaluated run, where it was never promoted and keeps out what the best promoted one would not."""
    gain = decision.gain
    if decision.reason is not Reason.NOT_BEST or gain is None or gain <= 0 or gain < policy.threshold:
        return None
    return decision.bars.best_evaluated


def signed(gain: Decimal | None) -> str:
    """A gain with its sign and six digits, or a word where there is none."""
    return "none" if gain is None else f"{gain:+.6f}"


def decision_id(decision: Decision, request: Request, view: LedgerView, code: int) -> str:
    """Equal for two decisions that rest on the same evidence and say the same: the second need not be recorded."""
    bars = [run.run_id if run else None for run in (decision.bars.best_evaluated, decision.bars.best_promoted)]
    said = [decision.verdict, decision.reason, decision.overrode, decision.failed_guard, str(decision.score), code]
    policy = [str(request.policy.threshold), dict(request.policy.weights), request.policy.require_significance]
    return digest_of([request.key, view.head_sha256, said, bars, policy, request.force, request.reason])


def comparison(decision: Decision, request: Request) -> dict[str, Any]:
    """model_comparison.json: the numbers behind the decision."""
    policy, metrics = request.policy, request.report.metrics.as_dict()
    best = decision.bars.best_evaluated
    return {
        "should_deploy": decision.verdict is Verdict.PROMOTE,
        "decision": decision.verdict.value,
        "reason": decision.reason.value,
        "explanation": explain(decision, policy),
        "current_score": float(decision.score),
        "historical_best_score": float(policy.score(best)) if best else None,
        "historical_best_run_id": best.run_id if best else None,
        "improvement": None if decision.gain is None else float(decision.gain),
        "threshold": float(policy.threshold),
        "runs_compared": decision.bars.runs,
        "runs_complete": decision.bars.complete,
        "failed_guard": decision.failed_guard,
        "significance": asdict(decision.evidence) if decision.evidence else None,
        "metrics": metrics,
        "weights": dict(policy.weights),
        "contributions": contributions(metrics, policy.weights),
        "best_evaluated": _side(decision.bars.best_evaluated, decision, policy),
        "best_promoted": _side(decision.bars.best_promoted, decision, policy),
        "champion": _side(decision.bars.champion, decision, policy),
    }


def info(decision: Decision, request: Request, view: LedgerView, *, code: int, run_id: str,
         dry_run: bool) -> dict[str, Any]:
    """deployment_info.json: what was decided and what customers talk to now. Nothing in it is a time."""
    head, previous = view.head, view.previous
    would = dry_run and decision.verdict is Verdict.PROMOTE
    promoted = decision.verdict in (Verdict.PROMOTE, Verdict.ALREADY) and not would
    return {
        "result": "would_promote" if would else RESULTS[decision.verdict],
        "code": code,
        "decision": decision.verdict.value,
        "reason": decision.reason.value,
        "explanation": explain(decision, request.policy),
        "overrode": decision.overrode.value if decision.overrode else None,
        "decision_id": decision_id(decision, request, view, code),
        "dry_run": dry_run,
        "model_name": request.model_name,
        "registry": request.registry,
        "version": head.version if head and promoted else None,
        "champion": {"version": head.version, "score": head.score, "key": head.key} if head else None,
        "previous_version": previous.version if previous else None,
        "model_uri": f"models:/{request.model_name}@champion" if head and request.registry != "none" else None,
        "ledger_slot": head.number if head else None,
        "hub": head.hub.model_dump() if head and head.hub else None,
        "weighted_score": float(decision.score),
        "model_digest": request.report.model_digest,
        "key": request.key,
        "contract": request.report.contract_digest,
        "evaluation_run": request.report.run_id,
        "fine_tuning_run": request.model.run_id,
        "deployment_run": run_id,
        "tracking_uri": request.tracking_uri,
        "actor": request.actor,
        "stated_reason": request.reason or "no reason given",
        "git_commit": request.git_commit,
        "ci_url": request.ci_url,
    }


def summary(facts: Mapping[str, Any], compared: Mapping[str, Any], records: str) -> str:
    """What a person reads at the end: the decision, why, the numbers, and where to look."""
    champion = facts["champion"]
    now = f"{facts['model_name']} version {champion['version']}" if champion else "none yet"
    now += " (registry: none)" if facts["registry"] == "none" else ""
    lines = [
        f"{facts['result'].upper()}: {facts['explanation']}.",
        f"  challenger  {facts['weighted_score']:.6f}  ({_parts(compared['contributions'])})",
        f"  best so far {_score(compared['best_evaluated'])}",
        f"  promoted    {_score(compared['best_promoted'])}",
        f"  champion    {now}",
        f"  Hub         {_hub(facts['hub'])}",
        f"  records     {records}/{{deployment_info.json,model_comparison.json,deployment_logs.txt}}",
        f"  MLflow      {facts['tracking_uri']}, run {facts['deployment_run']}",
    ]
    return "\n".join(lines)


def _side(run: ScoredRun | None, decision: Decision, policy: Policy) -> dict[str, Any] | None:
    if run is None:
        return None
    score = policy.score(run)
    return {"run_id": run.run_id, "model_digest": run.model_digest, "score": float(score),
            "delta": float(decision.score - score), "metrics": run.metrics.as_dict(),
            "contributions": contributions(run.metrics.as_dict(), policy.weights)}


def _parts(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in parts.items())


def _score(side: Mapping[str, Any] | None) -> str:
    return "none" if side is None else f"{side['score']:.6f}  (challenger {side['delta']:+.6f}, run {side['run_id']})"


def _hub(hub: Mapping[str, Any] | None) -> str:
    return f"{hub['repo']} at {hub['commit'][:12]}" if hub else "not pushed"


def dump(question: Question, decision: Decision, report: EvaluationReport, challengers: int) -> dict[str, Any]:
    """evidence.json: the question, what was answered, and what the bootstrap was taken of."""
    policy = question.policy
    return {
        "challenger": _run(question.challenger),
        "history": [_run(run) for run in question.history],
        "history_complete": question.history_complete,
        "ledger": [slot.text() for slot in question.ledger.slots],
        "policy": {"weights": dict(policy.weights), "threshold": str(policy.threshold),
                   "require_significance": policy.require_significance},
        "force": question.force,
        "may_promote": question.may_promote,
        "hub_holds_release": question.hub_holds_release,
        "failed_guard": question.failed_guard,
        "evidence": asdict(question.evidence) if question.evidence else None,
        "challengers": challengers,
        "report": report.model_dump(mode="json"),
        "answer": {"verdict": decision.verdict.value, "reason": decision.reason.value, "score": str(decision.score),
                   "gain": None if decision.gain is None else str(decision.gain)},
    }


def load(evidence: Mapping[str, Any], *, where: Path) -> Question:
    """The question in an evidence.json; raises InvalidInput or IntegrityError for one that was altered."""
    policy, gain = evidence["policy"], evidence["evidence"]
    return Question(
        challenger=_scored(evidence["challenger"], where),
        history=[_scored(run, where) for run in evidence["history"]],
        history_complete=evidence["history_complete"],
        ledger=parse_slots(evidence["ledger"]) if evidence["ledger"] else LedgerView(()),
        policy=Policy(policy["weights"], Decimal(policy["threshold"]), policy["require_significance"]),
        force=evidence["force"],
        may_promote=evidence["may_promote"],
        hub_holds_release=evidence["hub_holds_release"],
        failed_guard=evidence["failed_guard"],
        evidence=GainEvidence(**gain) if gain else None,
    )


def _run(run: ScoredRun) -> dict[str, Any]:
    return {**asdict(run), "metrics": run.metrics.as_dict()}


def _scored(value: Mapping[str, Any], where: Path) -> ScoredRun:
    return ScoredRun(**{**value, "metrics": Metrics.parse(value["metrics"], where=where)})
