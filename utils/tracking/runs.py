"""What the stages log to MLflow: an evaluation, a fine-tuning, and the report of an evaluation."""

import importlib.metadata
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from src.core.params import DeploymentParams, Params
from src.core.records import BaseModelRef, Datasets, ModelIdentity, ScoreContract, canonical_json, digest_of
from utils.environment import GitIdentity
from utils.mlflow_utils import Client, find_run, mlflow_errors
from utils.tracking import tag

logger = logging.getLogger(__name__)


def evaluation_tags(params: DeploymentParams, identity: ModelIdentity, contract: ScoreContract) -> dict[str, str]:
    """The tags of an evaluation run: which model it scored and under which score contract."""
    return {
        tag.MODEL_NAME: params.model_registry_name,
        tag.MODEL_DIGEST: identity.digest(),
        tag.CONTRACT: contract.digest(),
        tag.WEIGHTS: digest_of(params.weighted_scoring.weights),
        tag.CONTRACT_JSON: canonical_json(contract.model_dump(mode="json")),
        tag.ADAPTER: identity.adapter_sha256,
    }


def log_evaluation(client: MlflowClient, run_id: str, numbers: Mapping[str, float], files: Iterable[Path]) -> None:
    """Log numbers as metrics and files as artifacts; raises Undecided if the server fails."""
    now = int(time.time() * 1000)
    with mlflow_errors():
        client.log_batch(run_id, metrics=[Metric(name, float(value), now, 0) for name, value in numbers.items()])
        for file in files:
            client.log_artifact(run_id, str(file))


def fine_tuning_tags(model_name: str, git: GitIdentity, base: BaseModelRef, data: Datasets) -> dict[str, str]:
    """The tags of a training run: its model's name, base model, data and commit."""
    return {
        tag.MODEL_NAME: model_name,
        "champion.base_model": f"{base.name}@{base.revision}",
        "champion.base_sha256": base.sha256,
        tag.DATA: f"{data.raw.path}@{data.raw.sha256}",
        "champion.train_sha256": data.train.sha256,
        "champion.git_commit": git.commit,
        "champion.git_dirty": str(git.dirty).lower(),
    }


def log_fine_tuning(run_id: str, params: Params, curves: Mapping[str, Iterable[tuple[int, float]]], *, adapter: Path,
                    adapter_sha256: str, base: Path, location: Path) -> None:
    """Log parameters, curves as metrics by epoch, the adapter and its record, the tokenizer and the environment."""
    client = Client(mlflow.get_tracking_uri())
    metrics = [Metric(name, value, 0, step) for name, curve in curves.items() for step, value in curve]
    flat = _flat({"model": params.model.model_dump(), "fine_tuning": params.fine_tuning.model_dump()})
    with mlflow_errors():
        client.log_batch(run_id, metrics=metrics, params=[Param(name, str(value)) for name, value in flat])
        client.set_tag(run_id, tag.ADAPTER, adapter_sha256)
        client.log_artifacts(run_id, str(adapter), "adapter")
        client.log_artifact(run_id, str(location))  # `champion history --promote` restores the model from these two
        for file in sorted(base.glob("*token*")) + sorted(base.glob("*.jinja")):
            client.log_artifact(run_id, str(file), "tokenizer")
        packages = {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}
        client.log_text(run_id, "\n".join(sorted(packages, key=str.lower)) + "\n", "environment.txt")


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def log_page(client: MlflowClient, run_id: str, html: str) -> None:
    """Log the report page to a run, if the server has that run. Raises Undecided if the server does not answer."""
    if find_run(client, run_id) is None:
        logger.warning("MLflow lacks run %s: the report stays in results/ alone", run_id)
        return
    with mlflow_errors():
        client.log_text(run_id, html, "report/index.html")
