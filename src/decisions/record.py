"""A decision as JSON: deployment_info.json, model_comparison.json and evidence.json, written and read back. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from src.core.records import EvaluationReport, FineTunedModel, Metrics, contributions, digest_of
from src.decisions.words import NO_REASON, RESULTS, explain
from src.ledger.slots import LedgerView, parse_slots
from src.model_selection import Decision, GainEvidence, Policy, Question, ScoredRun, Verdict


@dataclass(frozen=True)
class Request:
    """One deployment: who asked, for which model, and under which policy. reason is empty if none was given."""

    report: EvaluationReport
    model: FineTunedModel
    policy: Policy
    model_name: str
    force: bool
    actor: str
    reason: str
    git_commit: str
    ci_url: str | None
    tracking_uri: str

    @property
    def challenger(self) -> ScoredRun:
        """The challenger as a scored run, the form that the gate takes."""
        report = self.report
        return ScoredRun(report.run_id, report.model_digest, report.contract_digest, report.metrics, 0)

    @property
    def key(self) -> str:
        """The promotion key."""
        return self.report.model.key(self.report.contract_digest)


def decision_id(decision: Decision, request: Request, view: LedgerView, code: int) -> str:
    """Hash evidence and result. Two decisions with the same id are recorded only once."""
    to_beat = [run.run_id if run else None for run in (decision.to_beat.best_evaluated, decision.to_beat.best_promoted)]
    said = [decision.verdict, decision.reason, decision.overrode, decision.failed_guard, str(decision.score), code]
    policy = [str(request.policy.threshold), dict(request.policy.weights), request.policy.require_significance]
    return digest_of([request.key, view.head_sha256, said, to_beat, policy, request.force, request.reason])


def comparison(decision: Decision, request: Request, view: LedgerView) -> dict[str, Any]:
    """The content of model_comparison.json: the numbers behind the decision."""
    policy, metrics = request.policy, request.report.metrics.as_dict()
    best = decision.to_beat.best_evaluated
    return {
        "should_deploy": decision.verdict is Verdict.PROMOTE,
        "decision": decision.verdict.value,
        "reason": decision.reason.value,
        "explanation": explain(decision, policy, view),
        "current_score": float(decision.score),
        **_numbers(decision, policy),
        "historical_best_run_id": best.run_id if best else None,
        "runs_compared": decision.to_beat.runs,
        "runs_complete": decision.to_beat.complete,
        "failed_guard": decision.failed_guard,
        "significance": asdict(decision.evidence) if decision.evidence else None,
        "metrics": metrics,
        "weights": dict(policy.weights),
        "contributions": contributions(metrics, policy.weights),
        "best_evaluated": _side(decision.to_beat.best_evaluated, decision, policy),
        "best_promoted": _side(decision.to_beat.best_promoted, decision, policy),
        "champion": _side(decision.to_beat.champion, decision, policy),
    }


def info(decision: Decision, request: Request, view: LedgerView, *, code: int, run_id: str,
         dry_run: bool) -> dict[str, Any]:
    """The content of deployment_info.json: what was decided, and which model is in production. It contains no time."""
    head, previous = view.head, view.previous
    would = dry_run and decision.verdict is Verdict.PROMOTE
    promoted = decision.verdict in (Verdict.PROMOTE, Verdict.ALREADY) and not would
    return {
        "result": "would_promote" if would else RESULTS[decision.verdict],
        "code": code,
        "decision": decision.verdict.value,
        "reason": decision.reason.value,
        "explanation": explain(decision, request.policy, view),
        "overrode": decision.overrode.value if decision.overrode else None,
        "decision_id": decision_id(decision, request, view, code),
        "dry_run": dry_run,
        "model_name": request.model_name,
        "registry": "mlflow",
        "version": head.version if head and promoted else None,
        "champion": {"version": head.version, "score": head.score, "key": head.key} if head else None,
        "previous_version": previous.version if previous else None,
        "model_uri": f"models:/{request.model_name}@champion" if head else None,
        "ledger_slot": head.number if head else None,
        "hub": head.hub.model_dump() if head and head.hub else None,
        "weighted_score": float(decision.score),
        **_numbers(decision, request.policy),
        "model_digest": request.report.model_digest,
        "key": request.key,
        "contract": request.report.contract_digest,
        "evaluation_run": request.report.run_id,
        "fine_tuning_run": request.model.run_id,
        "deployment_run": run_id,
        "tracking_uri": request.tracking_uri,
        "actor": request.actor,
        "stated_reason": request.reason or NO_REASON,
        "git_commit": request.git_commit,
        "ci_url": request.ci_url,
    }


def evidence_of(question: Question, decision: Decision, report: EvaluationReport) -> dict[str, Any]:
    """The content of evidence.json: everything that the decision depends on, and its result."""
    policy = question.policy
    confidence = {} if policy.confidence is None else {"confidence": policy.confidence}
    return {
        "challenger": _run(question.challenger),
        "history": [_run(run) for run in question.history],
        "history_complete": question.history_complete,
        "ledger": [slot.text() for slot in question.ledger.slots],
        "policy": {"weights": dict(policy.weights), "threshold": str(policy.threshold),
                   "require_significance": policy.require_significance, **confidence},
        "force": question.force,
        "may_promote": question.may_promote,
        "hub_holds_release": question.hub_holds_release,
        "failed_guard": question.failed_guard,
        "evidence": asdict(question.evidence) if question.evidence else None,
        "challengers": question.challengers,
        "report": report.model_dump(mode="json", exclude_none=True),  # as earlier versions wrote it
        "answer": {"verdict": decision.verdict.value, "reason": decision.reason.value, "score": str(decision.score),
                   "gain": None if decision.gain is None else str(decision.gain)},
    }


def question_of(evidence: Mapping[str, Any], *, where: Path) -> Question:
    """The question in an evidence.json. Raises InvalidInput or IntegrityError if it was altered."""
    policy, gain = evidence["policy"], evidence["evidence"]
    return Question(
        challenger=_scored(evidence["challenger"], where),
        history=[_scored(run, where) for run in evidence["history"]],
        history_complete=evidence["history_complete"],
        ledger=parse_slots(evidence["ledger"]) if evidence["ledger"] else LedgerView(()),
        policy=Policy(policy["weights"], Decimal(policy["threshold"]), policy["require_significance"],
                      policy.get("confidence")),
        force=evidence["force"],
        may_promote=evidence["may_promote"],
        hub_holds_release=evidence["hub_holds_release"],
        failed_guard=evidence["failed_guard"],
        evidence=GainEvidence(**gain) if gain else None,
        challengers=evidence["challengers"],
    )


def is_about(info: Mapping[str, Any], report: EvaluationReport) -> bool:
    """True if a deployment_info.json records a decision on this evaluated model under this score contract."""
    return (info.get("model_digest"), info.get("contract")) == (report.model_digest, report.contract_digest)


def differences(recorded: object, found: object) -> list[str]:
    """Where two JSON values differ, as `key.key: recorded ..., found ...`; empty if they are equal bit for bit."""
    sides = [{key: repr(value) for key, value in _leaves(side, "")} for side in (recorded, found)]
    keys = dict.fromkeys(key for side in sides for key in side)
    pairs = {key: [side.get(key, "nothing") for side in sides] for key in keys}
    return [f"{key}: recorded {left}, found {right}" for key, (left, right) in pairs.items() if left != right]


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if not isinstance(value, Mapping | list):
        yield path, value
        return
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _numbers(decision: Decision, policy: Policy) -> dict[str, float | None]:
    """What the score was compared with: the best evaluated model, the gain over the best promoted, the threshold."""
    best = decision.to_beat.best_evaluated
    return {"historical_best_score": float(policy.score(best)) if best else None,
            "improvement": None if decision.gain is None else float(decision.gain),
            "threshold": float(policy.threshold)}


def _side(run: ScoredRun | None, decision: Decision, policy: Policy) -> dict[str, Any] | None:
    if run is None:
        return None
    score = policy.score(run)
    return {"run_id": run.run_id, "model_digest": run.model_digest, "score": float(score),
            "delta": float(decision.score - score), "metrics": run.metrics.as_dict(),
            "contributions": contributions(run.metrics.as_dict(), policy.weights)}


def _run(run: ScoredRun) -> dict[str, Any]:
    return {**asdict(run), "metrics": run.metrics.as_dict()}


def _scored(value: Mapping[str, Any], where: Path) -> ScoredRun:
    return ScoredRun(**{**value, "metrics": Metrics.parse(value["metrics"], where=where)})
