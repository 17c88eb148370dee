"""A working directory with what the stages before the evaluation leave behind, and the answers a killed one left."""

from pathlib import Path

import yaml
from mlflow import MlflowClient

from src.core.params import MlflowParams
from src.core.records import EvaluationReport, canonical_json
from src.evaluation.predictions import AnsweredBatch
from src.ledger.slots import LedgerView
from src.models import merging
from src.promotion import release
from tests.fakes import factories, tiny_model
from utils.tracking import registry as mlflow_registry
from utils.tracking.ledger import MlflowLedger
from utils.tracking.tag import IDENTITY

REPOSITORY = Path(__file__).parents[2]


def write_shop(root: Path, mlflow_params: MlflowParams, *, tokens_per_batch: int = 160) -> None:
    """Tiny models, their records, a split of six rows, and params.yaml with a store of its own."""
    tiny_model.write_stages(root)
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["mlflow"].update(mlflow_params.model_dump())
    params["evaluation"].update(max_new_tokens=12, tokens_per_batch=tokens_per_batch)
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def promote(report: EvaluationReport, root: Path) -> int:
    """Register what was scored and put it at the head of the ledger; returns its version."""
    client, name = MlflowClient(report.tracking_uri), "ecommerce-chatbot"
    model, tokenizer = merging.merge(root / "results/base_model", root / "results/adapter", "float32")
    release.assemble_release(model, tokenizer, root / "release", max_new_tokens=12, texts={})

    def save(folder: Path) -> None:
        pins = ["torch", "transformers"]
        mlflow_registry.save_flavour(*merging.load(root / "release", "auto"), folder, pins)

    identity = canonical_json(report.model.model_dump(mode="json"))
    registry = mlflow_registry.MlflowRegistry(client, name, save=save, run_id=lambda: report.run_id,
                                              tags=lambda: {IDENTITY: identity})
    key = report.model.key(report.contract_digest)
    version = registry.register(key)
    assert MlflowLedger(client, name, "test-evaluation").claim(factories.slot(
        LedgerView(()), "", 0.1, key=key, model_digest=report.model_digest, version=version, metrics=report.metrics,
        contract=report.contract_digest, evaluation_run=report.run_id))
    return version


def kept(root: Path) -> list[AnsweredBatch]:
    """The whole batches in the partial files of all processes, each as often as it was answered."""
    lines = [line for path in sorted((root / "results/checkpoints").glob("evaluation-*.*.jsonl"))
             for line in path.read_text().splitlines()]
    return [AnsweredBatch.model_validate_json(line) for line in lines if line.endswith("}")]
