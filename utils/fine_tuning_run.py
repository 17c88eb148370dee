"""The MLflow run of a training: parameters, curves, adapter, environment, and what it was trained from."""

import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param

from src.params import Params
from src.records import BaseModelRef, Datasets
from utils.git_utils import GitIdentity
from utils.mlflow_utils import MODEL_NAME, talking

ADAPTER_SHA256 = "champion.adapter_sha256"


def tags(model_name: str, git: GitIdentity, base: BaseModelRef, data: Datasets) -> dict[str, str]:
    """What a training run is found by and what it was trained from."""
    return {
        MODEL_NAME: model_name,
        "champion.base_model": f"{base.name}@{base.revision}",
        "champion.base_sha256": base.sha256,
        "champion.data": f"{data.raw.path}@{data.raw.sha256}",
        "champion.train_sha256": data.train.sha256,
        "champion.git_commit": git.commit,
        "champion.git_dirty": str(git.dirty).lower(),
    }


def log(run_id: str, params: Params, curves: Mapping[str, Iterable[tuple[int, float]]], *, adapter: Path,
        adapter_sha256: str, base: Path, location: Path) -> None:
    """Parameters, a metric a curve with its epochs as steps, the adapter and its record, tokenizer and environment."""
    client = mlflow.MlflowClient()
    metrics = [Metric(name, value, 0, step) for name, curve in curves.items() for step, value in curve]
    flat = _flat({"model": params.model.model_dump(), "fine_tuning": params.fine_tuning.model_dump()})
    with talking():
        client.log_batch(run_id, metrics=metrics, params=[Param(name, str(value)) for name, value in flat])
        client.set_tag(run_id, ADAPTER_SHA256, adapter_sha256)
        client.log_artifacts(run_id, str(adapter), "adapter")
        client.log_artifact(run_id, str(location))  # with these two, history_script.py --promote brings it back
        for file in sorted(base.glob("*token*")) + sorted(base.glob("*.jinja")):
            client.log_artifact(run_id, str(file), "tokenizer")
        client.log_text(run_id, _environment(), "environment.txt")


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _environment() -> str:
    packages = {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}
    return "\n".join(sorted(packages, key=str.lower)) + "\n"
