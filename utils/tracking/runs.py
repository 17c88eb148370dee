"""The MLflow run of an evaluation: the tags that the gate finds it by, its numbers and its files."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric

from src.params import DeploymentParams
from src.records import ModelIdentity, ScoreContract, canonical_json, digest_of
from utils.mlflow_utils import CONTRACT, MODEL_DIGEST, MODEL_NAME, WEIGHTS, talking

CONTRACT_JSON = "champion.contract_json"
ADAPTER = "champion.adapter_sha256"


def tags(params: DeploymentParams, identity: ModelIdentity, contract: ScoreContract) -> dict[str, str]:
    """What an evaluation run is found by, and what it is to be compared under."""
    return {
        MODEL_NAME: params.model_registry_name,
        MODEL_DIGEST: identity.digest(),
        CONTRACT: contract.digest(),
        WEIGHTS: digest_of(params.weighted_scoring.weights),
        CONTRACT_JSON: canonical_json(contract.model_dump(mode="json")),
        ADAPTER: identity.adapter_sha256,
    }


def log(client: MlflowClient, run_id: str, numbers: Mapping[str, float], files: Iterable[Path]) -> None:
    """Numbers as metrics and files as artifacts; raises Undecided when the server fails."""
    now = int(time.time() * 1000)
    with talking():
        client.log_batch(run_id, metrics=[Metric(name, float(value), now, 0) for name, value in numbers.items()])
        for file in files:
            client.log_artifact(run_id, str(file))
