"""The answers of an evaluation: as a file, in MLflow, and batch by batch while a killed evaluation is resumed."""

import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from pydantic import ValidationError

from src.core.records import sync
from src.evaluation.predictions import AnsweredBatch, Prediction
from utils import mlflow_utils

logger = logging.getLogger("champion")
PREDICTIONS = "predictions.jsonl"


class PartialAnswers:
    """One batch a line, on the disk before the next one starts; each answering process has its own file."""

    def __init__(self, folder: Path, fingerprint: str, *, process: int) -> None:
        self._files = f"evaluation-{fingerprint}.*.jsonl"
        self._path = folder / self._files.replace("*", str(process))

    def read(self) -> list[AnsweredBatch]:
        """The complete batches of all processes; a line that a kill cut short is skipped."""
        batches = list[AnsweredBatch]()
        for path in sorted(self._path.parent.glob(self._files)):
            for line in path.read_bytes().splitlines():
                with suppress(ValidationError):
                    batches.append(AnsweredBatch.model_validate_json(line))
        return batches

    def add(self, batch: AnsweredBatch) -> None:
        """Append a batch and flush it; the newline before it ends a line that was cut short."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(b"\n" + batch.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync(self._path.parent)

    def remove(self) -> None:
        """Remove the files of all processes, once the evaluation's records are written."""
        for path in self._path.parent.glob(self._files):
            path.unlink(missing_ok=True)


def logged_predictions(client: MlflowClient, run_id: str) -> list[Prediction] | None:
    """The answers that an evaluation run keeps, None if it keeps none; raises Undecided if the server fails."""
    if PREDICTIONS not in {entry.path for entry in mlflow_utils.list_files(client, run_id, None)}:
        logger.warning("MLflow run %s: keeps no %s", run_id, PREDICTIONS)
        return None
    with tempfile.TemporaryDirectory() as folder:
        return Prediction.load_lines(mlflow_utils.fetch_files(client, run_id, PREDICTIONS, Path(folder)))
