"""MLflow: connecting, experiments and runs, what its errors mean, what a server can do."""

import atexit
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Experiment, FileInfo, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from src.core.errors import InvalidParams, PipelineError, RunAgain, Undecided
from src.core.params import MlflowParams
from utils.process import full_disk
from utils.tracking import store, tag

logger = logging.getLogger(__name__)

EVIDENCE = "evidence.json"  # an artifact of a deployment run

# MLflow's own defaults wait 246 s on a dead server and 1,208 s on a hung one.
_TIMEOUT, _RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_BYTES_PER_SECOND = 20_000_000
_CLIENT = {
    _TIMEOUT: "8",
    _RETRIES: "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")
_DOCTOR = "champion.doctor"  # a tag that proves write access


class LocalArtifacts(Undecided):
    """A server keeps artifacts at a path of the client's own disk, which is for it to neither write nor delete."""


class Client(MlflowClient):  # type: ignore[misc]  # MLflow has no types
    """MLflow's client, which refuses to log to a path of this machine that a server chose. Raises LocalArtifacts."""

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        """Keep a file with a run; log_text and log_dict end here too."""
        artifacts_of(self, run_id).log_artifact(local_path, artifact_path)

    def log_artifacts(self, run_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        """Keep the files of a folder with a run."""
        artifacts_of(self, run_id).log_artifacts(local_dir, artifact_path)


def artifacts_of(client: MlflowClient, run_id: str) -> ArtifactRepository:
    """The artifacts of a run. Raises what artifacts_at does, and MlflowException."""
    return artifacts_at(client, client.get_run(run_id).info.artifact_uri)


def artifacts_at(client: MlflowClient, address: str) -> ArtifactRepository:
    """The artifacts at an address that the tracking server gave. Raises LocalArtifacts, and MlflowException."""
    refuse_local(client.tracking_uri, address)
    repository = found = get_artifact_repository(address, tracking_uri=client.tracking_uri)
    while inner := getattr(found, "repo", None):  # what `runs:/` and `models:/` lead to
        found = inner
    if isinstance(found, LocalArtifactRepository):
        refuse_local(client.tracking_uri, found.artifact_dir)
    return repository


def refuse_local(tracking_uri: str, address: str) -> None:
    """Raise LocalArtifacts if a server (http or https) keeps artifacts at a path of the client's own disk.

    The client itself would read, write and delete there whatever the server names.
    """
    if urlsplit(tracking_uri).scheme in ("http", "https") and urlsplit(address).scheme in ("", "file"):
        raise LocalArtifacts(f"MLflow at {tracking_uri}: keeps artifacts at {address!r:.200}, a path on this machine "
                             "that the server chose; start it with `mlflow server --serve-artifacts "
                             "--artifacts-destination PLACE` or let it use s3://, see docs/troubleshooting.md")


def connect(params: MlflowParams) -> Client:
    """A client of the configured store; an sqlite file that does not exist is created first.

    Raises InvalidParams for an unusable address or setting of MLflow's client, Undecided for an unusable store.
    """
    return _connected(store.tracking_uri(params.tracking_uri), create=True)


def connect_to_read(params: MlflowParams) -> Client:
    """The same for a command that only reads: if the sqlite file does not exist, of an empty one in a temporary folder.

    A command with a wrong working folder would else leave an empty store there, which answers every later question.
    """
    uri = store.tracking_uri(params.tracking_uri)
    if not store.is_absent(uri):
        return _connected(uri, create=False)
    logger.warning("%s: does not exist yet, so nothing was evaluated or promoted in this store", uri)
    folder = tempfile.mkdtemp(prefix="champion-no-store-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _connected(f"{store.SQLITE}{folder}/mlflow.db", create=True)


def _connected(uri: str, *, create: bool) -> Client:
    for name, value in _CLIENT.items():
        os.environ.setdefault(name, value)
    for name in (_TIMEOUT, _RETRIES):
        if not os.environ[name].isdecimal():
            raise InvalidParams(f"{name}: {os.environ[name]!r} is no whole number")
    for noisy in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    store.log_in(uri)
    store.prepare(uri, create=create)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with mlflow_errors():
        return Client(uri, uri)


@contextmanager
def mlflow_errors() -> Iterator[None]:
    """Turn whatever MLflow raises in this block into Undecided; for a lock into RunAgain, for a full disk as usual."""
    try:
        yield
    except (MlflowException, OSError) as error:  # for files: an error of requests, or of the disk
        raise explained(error) from error


def explained(error: MlflowException | OSError) -> PipelineError:
    """An error of MLflow in one line that names the store and the remedy."""
    uri = mlflow.get_tracking_uri()
    kind = error.error_code if isinstance(error, MlflowException) else type(error).__name__
    first = (str(error).splitlines() or [""])[0][:300]
    if "database is locked" in str(error):
        return RunAgain(f"MLflow at {uri}: locked by another process; run it again")
    full, remote = full_disk(error, f"MLflow at {uri}"), uri.startswith("http")
    if full and (isinstance(error, OSError) or not remote):
        return full
    remedy = "check that the store and its artifacts' folder can be read and written"
    if remote:
        remedy = ("make room on the server's disk" if full else
                  "check that it runs and that MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are right")
    return Undecided(f"MLflow at {uri}: {kind}: {first}; {remedy}")


def unanswered(error: MlflowException) -> bool:
    """Whether the server gave no usable reply to any attempt; another request would only wait as long again."""
    return isinstance(error.__context__, requests.RequestException)


def sent_once() -> AbstractContextManager[None]:
    """Switch the client's own retries off: after a lost reply they would do a thing twice."""
    return _client_setting(_RETRIES, 0)


def time_for(size: int) -> AbstractContextManager[None]:
    """Wait longer for each reply: the server stores so many bytes, perhaps on another machine, before it replies."""
    usual = int(os.environ.get(_TIMEOUT, _CLIENT[_TIMEOUT]))
    return _client_setting(_TIMEOUT, usual + size // _BYTES_PER_SECOND)


@contextmanager
def _client_setting(name: str, value: int) -> Iterator[None]:
    before = os.environ.get(name, _CLIENT[name])
    os.environ[name] = str(value)
    try:
        yield
    finally:
        os.environ[name] = before


def find_experiment(client: MlflowClient, name: str) -> Experiment | None:
    """The experiment of this name, None if there is none; raises Undecided for a deleted one."""
    with mlflow_errors():
        found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != "active":
        raise Undecided(f"MLflow experiment {name!r} is deleted; restore it with "
                        f"`mlflow experiments restore --experiment-id {found.experiment_id}`")
    return found


def ensure_experiment(client: MlflowClient, name: str, tags: Mapping[str, str]) -> Experiment:
    """The experiment of this name; if there is none, it is created with these tags in one atomic call.

    A caller that comes second, or that lost the reply to its own call, gets the existing experiment. Raises
    LocalArtifacts; an experiment made for nothing is put away, because it keeps its address for ever.
    """
    found, made = find_experiment(client, name), None
    if found is None:
        try:
            made = client.create_experiment(name, tags=dict(tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise explained(error) from error
        found = find_experiment(client, name)
    if found is None:
        raise Undecided(f"MLflow experiment {name!r}: created, yet not found; check the server")
    try:
        refuse_local(client.tracking_uri, found.artifact_location)
    except LocalArtifacts:
        if made == found.experiment_id:
            with mlflow_errors():
                client.rename_experiment(made, f"{name}.refused-{made}")
                client.delete_experiment(made)
        raise
    return found


@contextmanager
def stage_run(params: MlflowParams, *, kind: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """An active MLflow run of a stage in the configured experiment; yields its id.

    The run ends FINISHED, or FAILED when the block raises.
    """
    client = connect(params)
    experiment = ensure_experiment(client, params.experiment_name, {})
    with mlflow_errors():
        run = mlflow.start_run(experiment_id=experiment.experiment_id, run_name=name, tags={tag.KIND: kind, **tags})
    status = "FAILED"
    try:
        refuse_local(client.tracking_uri, run.info.artifact_uri)
        yield run.info.run_id
        status = "FINISHED"
    finally:
        mlflow.end_run(status)


def list_files(client: MlflowClient, run_id: str, path: str | None) -> list[FileInfo]:
    """The files of a run in one folder, its top folder for None; empty if there is no such folder.

    MLflow's own `runs:/` asks for logged models too, an endpoint that servers before MLflow 3 lack.
    """
    with mlflow_errors():
        found = list(artifacts_of(client, run_id).list_artifacts(path))
    if odd := [entry.path for entry in found if ".." in PurePosixPath(entry.path).parts or entry.path[:1] == "/"]:
        raise Undecided(f"MLflow run {run_id}: lists {odd[0]!r:.200} among its artifacts, which leads out of them; "
                        "check the server")
    return found


def fetch_files(client: MlflowClient, run_id: str, path: str, folder: Path) -> Path:
    """Download a file or folder of a run, below `folder`; raises Undecided, also if it is missing."""
    with mlflow_errors():
        repository = artifacts_of(client, run_id)
        folder.mkdir(parents=True, exist_ok=True)
        return Path(repository.download_artifacts(path, str(folder)))


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """A run, deleted ones included; None if the server has no run of this id."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise explained(error) from error


@dataclass(frozen=True)
class Abilities:
    """Which parts of the Model Registry a server has."""

    registry: bool
    aliases: bool
    stages: bool


def version(uri: str) -> str | None:
    """The version that the server states; None if it states none (a service that imitates MLflow)."""
    try:
        reply = http_request(get_default_host_creds(uri), "/version", "GET", max_retries=0, timeout=5)
    except (MlflowException, requests.RequestException):
        return None
    text = str(reply.text).strip()
    return text if reply.status_code == requests.codes.ok and len(text) < 20 else None


def greet(client: MlflowClient) -> None:
    """Send one request with the configured credentials; raises Undecided."""
    with mlflow_errors():
        client.search_experiments(max_results=1)


def abilities(client: MlflowClient, name: str) -> Abilities:
    """Ask each endpoint for something that does not exist; raises Undecided if one fails in another way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated
        return Abilities(
            registry=_has(lambda: client.get_registered_model(name)),
            aliases=_has(lambda: client.get_model_version_by_alias(name, "champion")),
            stages=_has(lambda: client.transition_model_version_stage(name, "0", "Production")),
        )


def may_register(client: MlflowClient, name: str) -> None:
    """Check write access by a tag that is removed again; raises Undecided if it is refused. No model yet: no check."""
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return
        raise explained(error) from error
    with mlflow_errors():
        client.set_registered_model_tag(name, _DOCTOR, "write access")
        client.delete_registered_model_tag(name, _DOCTOR)


def _has(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except MlflowException as error:
        if error.error_code in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"):
            return False
        if error.error_code not in _ABSENT:
            raise explained(error) from error
    return True
