"""Small valid records, for tests to change one thing of."""

from decimal import Decimal
from pathlib import Path
from typing import Any

from src.core.params import METRICS
from src.core.records import (
    EvaluationReport,
    FineTunedModel,
    Metrics,
    ModelIdentity,
    ScoreContract,
    digest_of,
    manifest,
    tree_digest,
)
from src.ledger.slots import HubRef, LedgerView, Slot
from src.model_selection import GainEvidence, Policy, Question, ScoredRun
from utils.json_utils import write_object

WEIGHTS = {"bleu1": 0.10, "bleu2": 0.15, "bleu3": 0.25, "bleu4": 0.40, "rougeL_precision": 0.10}
POLICY = Policy(WEIGHTS, Decimal("0.001"), require_significance=False)
CONTRACT = digest_of("today's contract")


def metrics(score: float) -> Metrics:
    """Five equal components, so that the weighted score is theirs."""
    return Metrics(**dict.fromkeys(METRICS, score))


def run(model: str, score: float, *, contract: str = CONTRACT, run_id: str | None = None, at: int = 0) -> ScoredRun:
    return ScoredRun(run_id or f"run-{model}", digest_of(model), contract, metrics(score), at)


def slot(before: LedgerView, model: str, score: float, **changes: Any) -> Slot:
    """The next slot: a promotion of this model, unless changed."""
    values = {
        "number": before.next_number, "kind": "promote", "key": digest_of([model, CONTRACT]),
        "model_digest": digest_of(model), "version": before.next_number, "score": str(score), "metrics": metrics(score),
        "contract": CONTRACT, "evaluation_run": f"run-{model}", "hub": None, "blocks": [], "unblocks": [],
        "previous_sha256": before.head_sha256, "actor": "somebody", "reason": "test", "git_commit": "0" * 40,
        "ci_url": None, "time": "2026-11-20T12:00:00+00:00",
    }
    return Slot(**{**values, **changes})


def hub_ref(model: str, repo: str = "shop/bot") -> HubRef:
    return HubRef(repo=repo, commit=digest_of(["commit", model])[:40], tree=digest_of(["tree", model]))


def ledger(*promotions: tuple[str, float] | tuple[str, float, dict[str, Any]]) -> LedgerView:
    """Promotions in order: model, score, and what else of the slot differs."""
    view = LedgerView(())
    for model, score, *changes in promotions:
        view = LedgerView((*view.slots, slot(view, model, score, **(changes[0] if changes else {}))))
    return view


def rollback(view: LedgerView, to: int, *, blocks: list[int], unblocks: list[int] | None = None) -> LedgerView:
    """The view after a slot that points to an older version again."""
    target = next(each for each in view.slots if each.version == to)
    again = target.model_copy(update={
        "number": view.next_number, "kind": "rollback", "previous_sha256": view.head_sha256, "blocks": blocks,
        "unblocks": [to] if unblocks is None else unblocks,
    })
    return LedgerView((*view.slots, again))


def question(challenger: ScoredRun, history: list[ScoredRun], view: LedgerView, **changes: Any) -> Question:
    """What a plain deployment asks, unless changed."""
    values = {"policy": POLICY, "history_complete": True, "force": False, "may_promote": True,
              "hub_holds_release": False, "failed_guard": None, "evidence": None}
    return Question(challenger=challenger, history=history, ledger=view, **{**values, **changes})


def evidence(low: float = -0.01, high: float = 0.02, **changes: Any) -> GainEvidence:
    """What a paired bootstrap on 232 rows says of a small gain."""
    values = {"gain": (low + high) / 2, "confidence": 0.95, "threshold": 0.001, "p_value": 0.3,
              "p_gain_positive": 0.7, "p_gain_at_least_threshold": 0.6, "minimum_detectable_gain": 0.021,
              "rows_needed": 900, "rows": 232, "resamples": 2000, "seed": 1}
    return GainEvidence(low=low, high=high, **{**values, **changes})


IDENTITY = {"base_name": "pocket", "base_revision": "none", "base_sha256": digest_of("base"), "dtype": "float32",
            "safe_merge": True}
SCORE_CONTRACT = {"rows_sha256": digest_of("rows"), "generation": {"max_new_tokens": 160, "do_sample": False},
                  "metric_version": "1", "metric_signature": "tok:13a"}
DATASET = {"path": "results/data/evaluation.jsonl", "sha256": digest_of("split"), "rows": 12}


def report_values(adapter: str, score: float = 0.5) -> dict[str, Any]:
    """report.json of an adapter with this digest."""
    identity = ModelIdentity.parse({**IDENTITY, "adapter_sha256": adapter}, where="")
    contract = ScoreContract.parse(SCORE_CONTRACT, where="")
    return {
        "run_id": "e" * 32, "tracking_uri": "sqlite:///mlflow.db", "model": identity.model_dump(),
        "model_digest": identity.digest(), "contract": contract.model_dump(), "contract_digest": contract.digest(),
        "metrics": metrics(score).as_dict(), "weighted_score": score, "weights": WEIGHTS, "rows": 12,
        "truncated_rows": 0, "empty_rows": 0, "overlap_rows": 0, "evaluation": DATASET,
    }


def model_values(adapter: str) -> dict[str, Any]:
    """fine_tuned_model_location.json of an adapter with this digest."""
    return {
        "run_id": "f" * 32, "tracking_uri": "sqlite:///mlflow.db", "adapter_path": "results/adapter",
        "adapter_sha256": adapter, "git_commit": "0" * 40, "train": {**DATASET, "path": "results/data/train.jsonl"},
        "base_model": {"name": "pocket", "revision": "none", "path": "results/base_model", "sha256": digest_of("base")},
        "lora": {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": ["q_proj"]},
    }


def report(score: float = 0.5) -> EvaluationReport:
    return EvaluationReport.parse(report_values(digest_of("adapter"), score), where="")


def model() -> FineTunedModel:
    return FineTunedModel.parse(model_values(digest_of("adapter")), where="")


def write_results(root: Path) -> None:
    """results/ as the stages before the deployment leave it, with few bytes in it."""
    adapter = root / "results" / "adapter"
    for folder in (adapter, root / "results" / "base_model"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    digest = tree_digest(manifest(adapter))
    values = report_values(digest)
    write_object(root / "results/evaluations/report.json", values)
    write_object(root / "results/evaluations/metrics.json",
                 {**values["metrics"], "weighted_score": values["weighted_score"], "rows": values["rows"]})
    write_object(root / "results/fine_tuned_model_location.json", model_values(digest))
