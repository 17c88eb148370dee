"""What the report asks of MLflow: the latest evaluations, and to keep the page with its deployment run."""

import logging

from mlflow import MlflowClient

from src.model_selection import ScoredRun
from utils.mlflow_history import HistoryReader
from utils.mlflow_utils import find_experiment, find_run, talking

logger = logging.getLogger(__name__)

PAGE_ARTIFACT = "report/index.html"


class LatestEvaluations(HistoryReader):
    """The history by time rather than by score."""

    def read_latest(self, count: int) -> tuple[list[ScoredRun], bool]:
        """The latest evaluations, at most count of them, oldest first, and whether there are older ones."""
        experiment = find_experiment(self._client, self._experiment)
        if experiment is None:
            return [], False
        page, more = self._page(experiment.experiment_id, "", None)  # the server gives the latest first
        runs = sorted(self._scored(page), key=lambda run: (run.finished_at, run.run_id))
        return runs[-count:], more is not None or len(runs) > count


def log_page(client: MlflowClient, run_id: str, html: str) -> None:
    """Keep the page with a run; a server that lacks the run is left alone. Raises Undecided when it does not answer."""
    if find_run(client, run_id) is None:
        logger.warning("MLflow lacks run %s: the report stays in results/ alone", run_id)
        return
    with talking():
        client.log_text(run_id, html, PAGE_ARTIFACT)
