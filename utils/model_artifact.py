"""A model's files, kept with an MLflow run and fetched from it."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from src.errors import IntegrityError, Undecided
from utils.mlflow_utils import find_run, list_files, talking, time_for

ARTIFACT = "model"


def keep_model(client: MlflowClient, run_id: str, save: Callable[[Path], None]) -> None:
    """Have `save` write a model into a folder, and keep it with a run as artifact `model`.

    Raises Undecided when the server fails, IntegrityError when it kept other files than were sent.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / ARTIFACT
        save(model)
        sent = {p.relative_to(model.parent).as_posix(): p.stat().st_size for p in model.rglob("*") if p.is_file()}
        with talking(), time_for(max(sent.values())):
            client.log_artifacts(run_id, str(model), ARTIFACT)
        _check_upload(client, run_id, sent)


def delete_model(client: MlflowClient, run_id: str) -> None:
    """Delete the model that a run keeps, where it is there; raises Undecided when the store fails or keeps it."""
    run = find_run(client, run_id)
    if run is None:  # removed for good, with its files
        return
    with talking(), contextlib.suppress(NotImplementedError):  # a store that deletes nothing: seen below
        get_artifact_repository(run.info.artifact_uri, tracking_uri=client.tracking_uri).delete_artifacts(ARTIFACT)
    if list_files(client, run_id, ARTIFACT):
        raise Undecided(f"MLflow run {run_id}: its artifact store deletes nothing; set deployment.keep_versions: 0")


def plain(flavour: Path) -> Path:
    """A downloaded model in MLflow's transformers flavour as one plain transformers folder; returns that folder."""
    model = flavour / "model"
    for file in (flavour / "components" / "tokenizer").iterdir():
        shutil.copy2(file, model / file.name)
    return model


def _check_upload(client: MlflowClient, run_id: str, sent: Mapping[str, int]) -> None:
    # A version says READY whatever its source holds, so sizes are compared before it is created.
    kept = dict(_listed(client, run_id, ARTIFACT))
    if kept != sent:
        odd = sorted(set(sent.items()) ^ set(kept.items()))[0][0]
        raise IntegrityError(f"MLflow run {run_id}: {odd} was not kept as it was sent; check the artifact store")


def _listed(client: MlflowClient, run_id: str, path: str) -> Iterable[tuple[str, int]]:
    for entry in list_files(client, run_id, path):
        if entry.is_dir:
            yield from _listed(client, run_id, entry.path)
        else:
            yield entry.path, int(entry.file_size)
