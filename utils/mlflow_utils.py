"""MLflow: connecting, experiments and runs, and what its errors mean."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException

from src.errors import Undecided
from src.params import MlflowParams
from utils import dagshub_utils, mlflow_store

logger = logging.getLogger(__name__)

KIND = "kind"
MODEL_NAME = "champion.model_name"
MODEL_DIGEST = "champion.model_digest"
CONTRACT = "champion.contract"
WEIGHTS = "champion.weights"
EXCLUDED = "champion.excluded"
KEY = "champion.key"

# MLflow's own defaults wait 246 s on a dead server and 1,208 s on a hung one.
_CLIENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def connect(params: MlflowParams) -> MlflowClient:
    """A client of the configured store, which is created first where it is an absent sqlite file.

    Raises InvalidParams for an unusable address, Undecided for an unusable store.
    """
    for name, value in _CLIENT.items():
        os.environ.setdefault(name, value)
    for noisy in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    uri = mlflow_store.tracking_uri(params.tracking_uri)
    dagshub_utils.log_in(uri)
    mlflow_store.prepare(uri)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with talking():
        return MlflowClient(uri, uri)


@contextmanager
def talking() -> Iterator[None]:
    """Turn whatever MLflow raises into Undecided, in one line that names the store and the remedy."""
    try:
        yield
    except MlflowException as error:
        first = str(error).splitlines()[0][:300]
        raise Undecided(
            f"MLflow at {mlflow.get_tracking_uri()}: {error.error_code}: {first}; "
            "check that it runs and that MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are right"
        ) from error


def find_experiment(client: MlflowClient, name: str) -> Experiment | None:
    """The experiment of this name, None where there is none; a deleted one raises Undecided."""
    with talking():
        found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != "active":
        raise Undecided(f"MLflow experiment {name!r} is deleted; restore it with "
                        f"`mlflow experiments restore --experiment-id {found.experiment_id}`")
    return found


def ensure_experiment(client: MlflowClient, name: str, tags: Mapping[str, str]) -> Experiment:
    """The experiment of this name, made with these tags in one atomic call if there is none.

    Whoever comes second, or lost the reply to its own call, gets the experiment that stands.
    """
    found = find_experiment(client, name)
    if found is None:
        try:
            client.create_experiment(name, tags=dict(tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                with talking():
                    raise
        found = find_experiment(client, name)
    if found is None:
        raise Undecided(f"MLflow experiment {name!r}: created, yet not found; check the server")
    return found


@contextmanager
def stage_run(params: MlflowParams, *, kind: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """An active MLflow run of a stage in the configured experiment; yields its id.

    The run ends FINISHED, or FAILED when the block raises.
    """
    client = connect(params)
    experiment = ensure_experiment(client, params.experiment_name, {})
    with talking():
        run = mlflow.start_run(experiment_id=experiment.experiment_id, run_name=name, tags={KIND: kind, **tags})
    status = "FAILED"
    try:
        yield run.info.run_id
        status = "FINISHED"
    finally:
        mlflow.end_run(status)


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """A run, deleted ones included, None where the server has none of this id."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        with talking():
            raise
