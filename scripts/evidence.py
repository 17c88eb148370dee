"""The paired bootstrap of a decision, from the answers of two evaluations."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient

from src.evidence import GainEvidence
from src.metrics import RowStatistics
from src.model_selection import Policy
from src.params import DeploymentParams
from src.predictions import Prediction
from src.significance import adjusted_confidence, paired_bootstrap, seed_from, shared_rows
from utils import json_utils, mlflow_utils

logger = logging.getLogger("champion")

PREDICTIONS = "predictions.jsonl"


def read_predictions(path: Path) -> list[Prediction]:
    """The rows of a predictions.jsonl."""
    return [Prediction.parse(row, where=path) for row in json_utils.read_lines(path)]


def logged_predictions(client: MlflowClient, run_id: str) -> list[Prediction] | None:
    """The answers that an evaluation run keeps, None where it keeps none; raises Undecided when the server fails."""
    if PREDICTIONS not in {entry.path for entry in mlflow_utils.list_files(client, run_id, None)}:
        logger.warning("MLflow run %s: keeps no %s", run_id, PREDICTIONS)
        return None
    with tempfile.TemporaryDirectory() as folder:
        return read_predictions(mlflow_utils.fetch_files(client, run_id, PREDICTIONS, Path(folder)))


def gain_evidence(challenger: Sequence[Prediction], baseline: Sequence[Prediction], *, policy: Policy, contract: str,
                  params: DeploymentParams, challengers: int) -> GainEvidence:
    """What the shared rows say about the gain; under `require` the confidence allows for the k-th challenger."""
    ours, theirs = shared_rows([row.id for row in challenger], [row.id for row in baseline])
    confidence = params.confidence
    if policy.require_significance:
        confidence = adjusted_confidence(params.confidence, challengers)
    return paired_bootstrap(
        RowStatistics.from_rows([row.stats for row in challenger]).take(ours),
        RowStatistics.from_rows([row.stats for row in baseline]).take(theirs),
        weights=policy.weights, threshold=float(policy.threshold), confidence=confidence,
        resamples=params.resamples, seed=seed_from(contract),
    )
