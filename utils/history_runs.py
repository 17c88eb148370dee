"""Single runs of the history on MLflow: what became of an evaluation, its evidence, and taking it out."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from src.errors import InvalidInput, InvalidParams, Undecided
from utils import json_utils
from utils.deployment_run import DECISION, EVIDENCE
from utils.mlflow_history import PAGE
from utils.mlflow_utils import EXCLUDED, KEY, KIND, MODEL_NAME, fetch_files, find_experiment, find_run, talking

REASON = "champion.reason"


class HistoryRuns:
    """Runs of one registered model in one experiment."""

    def __init__(self, client: MlflowClient, *, experiment: str, model_name: str) -> None:
        self._client = client
        self._experiment = experiment
        self._model_name = model_name

    def decisions(self) -> dict[str, str]:
        """The latest decision of each promotion key, as `verdict (reason)`."""
        deployments = sorted(self._deployments(""), key=lambda run: int(run.info.end_time or 0))
        return {run.data.tags[KEY]: f"{run.data.tags[DECISION]} ({run.data.tags.get(REASON, 'no reason')})"
                for run in deployments if KEY in run.data.tags and DECISION in run.data.tags}

    def find(self, run_id: str, *kinds: str) -> Run:
        """A run of this model, of one of these kinds and not deleted; raises InvalidParams for any other."""
        run = find_run(self._client, run_id)
        what = None if run is None else run.data.tags.get(KIND)
        if run is None or run.info.lifecycle_stage != "active":
            raise InvalidParams(f"run {run_id}: MLflow has no such run; `python scripts/history_script.py` lists them")
        if what not in kinds or run.data.tags.get(MODEL_NAME) != self._model_name:
            raise InvalidParams(f"run {run_id}: is no {' or '.join(kinds)} of {self._model_name}; "
                                "`python scripts/history_script.py` lists them")
        return run

    def deployment_of(self, key: str) -> Run | None:
        """The latest deployment of a promotion key that came to a decision."""
        found = (run for run in self._deployments(f"tags.`{KEY}` = '{key}' and ") if DECISION in run.data.tags)
        return max(found, key=lambda run: int(run.info.end_time or 0), default=None)

    def evidence(self, deployment: Run) -> dict[str, Any]:
        """The evidence.json of a deployment; raises InvalidInput where it keeps none."""
        run_id = deployment.info.run_id
        with tempfile.TemporaryDirectory() as folder:
            return json_utils.read_object(self.download(run_id, EVIDENCE, Path(folder)))

    def download(self, run_id: str, artifact: str, folder: Path) -> Path:
        """An artifact of a run, below a folder; raises InvalidInput where the run keeps none of this name."""
        try:
            return fetch_files(self._client, run_id, artifact, folder)
        except Undecided as error:
            raise InvalidInput(f"MLflow run {run_id}: its artifact {artifact} cannot be read "
                               f"({error!s:.300}); is the artifact store complete?") from error

    def exclude(self, run: Run, note: str) -> None:
        """Take an evaluation out of every later comparison."""
        with talking():
            self._client.set_tag(run.info.run_id, EXCLUDED, note)

    def _deployments(self, clause: str) -> Iterator[Run]:
        return self.search(f"{clause}tags.{KIND} = 'deployment' and attributes.status = 'FINISHED'")

    def search(self, clause: str) -> Iterator[Run]:
        """The active runs of this model that a clause leaves."""
        experiment, token = find_experiment(self._client, self._experiment), None
        while experiment is not None:
            with talking():
                page = self._client.search_runs(
                    [experiment.experiment_id], f"{clause} and tags.`{MODEL_NAME}` = '{self._model_name}'",
                    ViewType.ACTIVE_ONLY, PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return
