"""A question to the gate as JSON, so that its decision can be taken again later and be found the same."""

from collections.abc import Mapping
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

from src.evidence import GainEvidence
from src.ledger import LedgerView, parse_slots
from src.model_selection import Decision, Policy, Question, ScoredRun
from src.records import EvaluationReport, Metrics


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
