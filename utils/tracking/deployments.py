"""Deployments: their MLflow runs, evaluation runs logged anew for them, and a local journal of their steps."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities.run_status import RunStatus

from src.core.errors import InvalidInput, Undecided
from src.core.params import Params
from src.core.records import EvaluationReport, canonical_json
from src.promotion.protocol import Step
from utils import mlflow_utils
from utils.mlflow_utils import EVIDENCE, mlflow_errors
from utils.results import Inputs
from utils.tracking import tag

logger = logging.getLogger(__name__)
FOLDER = Path(".promotion")


class DeploymentRun:
    """The MLflow run of a deployment, created when first needed: a deployment that changes nothing has none."""

    def __init__(self, client: MlflowClient, experiment: str, model_name: str, key: str) -> None:
        self._client, self._experiment = client, experiment
        self._tags = {tag.KIND: "deployment", tag.MODEL_NAME: model_name, tag.KEY: key}
        self._id: str | None = None

    def id(self) -> str:
        """The run's id; the first call creates the run."""
        if self._id is None:
            experiment = mlflow_utils.ensure_experiment(self._client, self._experiment, {})
            with mlflow_errors():
                run = self._client.create_run(experiment.experiment_id, run_name="deployment", tags=self._tags)
            self._id = str(run.info.run_id)
        return self._id

    def ended(self, run_id: str) -> bool:
        """True if an earlier run was recorded completely in MLflow, which happens after the local files are written."""
        run = mlflow_utils.find_run(self._client, run_id)
        return run is not None and run.info.status == RunStatus.to_string(RunStatus.FINISHED)

    def finish(self, facts: Mapping[str, Any], compared: Mapping[str, Any], evidence: Mapping[str, Any],
               output: Path) -> None:
        """Log the comparison, the decision, its evidence and the files of results/deployment, and end the run."""
        same = {name: compared[name] for name in ("improvement", "threshold", "historical_best_score")}
        numbers = {"weighted_score": compared["current_score"], **compared["metrics"], **same}
        metrics = [Metric(name, float(value), 0, 0) for name, value in numbers.items() if value is not None]
        params = [Param("model_name", facts["model_name"]), Param("weights", canonical_json(compared["weights"]))]
        tags = [RunTag(tag.DECISION, facts["decision"]), RunTag(tag.REASON, facts["reason"]),
                RunTag(tag.VERSION, str(facts["version"]))]
        with mlflow_errors():
            self._client.log_batch(self.id(), metrics=metrics, params=params, tags=tags)
            self._client.log_artifacts(self.id(), str(output), "deployment")
            self._client.log_dict(self.id(), dict(evidence), EVIDENCE)
            self._client.set_terminated(self.id())
            # Runs that a killed deployment of the same model left open.
            home = mlflow_utils.ensure_experiment(self._client, self._experiment, {}).experiment_id
            query = f"attributes.status = 'RUNNING' and tags.`{tag.KEY}` = '{self._tags[tag.KEY]}' and "
            for run in self._client.search_runs([home], query + "tags.kind = 'deployment'"):
                self._client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))


def mark_guard(client: MlflowClient, run_id: str, failed: str | None) -> None:
    """Tag an evaluation with the guard that its model failed, or remove the tag if none did.

    A model that a guard refused is no score to beat. Writes only what differs, so that a repeated call changes nothing.
    """
    with mlflow_errors():
        known = client.get_run(run_id).data.tags.get(tag.FAILED_GUARD)
        if failed and known != failed:
            client.set_tag(run_id, tag.FAILED_GUARD, failed)
        elif known and not failed:
            client.delete_tag(run_id, tag.FAILED_GUARD)


@dataclass(frozen=True)
class PastDeployment:
    """A deployment that was started; decision is None if it did not end. time is UTC in ISO 8601."""

    run_id: str
    time: str
    status: str
    key: str
    decision: str | None
    reason: str | None
    version: str | None


def latest(client: MlflowClient, experiment: str, model_name: str, *, count: int, running: bool
           ) -> list[PastDeployment]:
    """The latest deployments of a model, newest first: those that ended, or those that did not."""
    home = mlflow_utils.find_experiment(client, experiment)
    if home is None:
        return []
    query = (f"tags.{tag.KIND} = 'deployment' and tags.`{tag.MODEL_NAME}` = '{model_name}' and "
             f"attributes.status {'=' if running else '!='} 'RUNNING'")
    with mlflow_errors():
        runs = client.search_runs([home.experiment_id], query, max_results=count,
                                  order_by=["attributes.start_time DESC"])
    return [PastDeployment(run_id=str(run.info.run_id), status=str(run.info.status), key=tags.get(tag.KEY, ""),
                           time=datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds"),
                           decision=tags.get(tag.DECISION), reason=tags.get(tag.REASON), version=tags.get(tag.VERSION))
            for run in runs for tags in [run.data.tags]]


def with_known_run(client: MlflowClient, inputs: Inputs, params: Params) -> Inputs:
    """The inputs with an evaluation run on this server. If the server lacks the run, it is logged anew from the files.

    Raises InvalidInput when the run was deleted or belongs to another experiment or model, Undecided if there is a
    ledger and the history beside it is gone.
    """
    report, name, experiment = inputs.report, params.deployment.model_registry_name, params.mlflow.experiment_name
    if mlflow_utils.find_experiment(client, experiment) is None and mlflow_utils.find_experiment(
            client, f"{name}.ledger"):
        raise Undecided(f"{name}: was promoted before, but MLflow experiment {experiment!r} with its history is "
                        "missing; correct mlflow.experiment_name or restore it")
    home = mlflow_utils.ensure_experiment(client, experiment, {}).experiment_id
    run = mlflow_utils.find_run(client, report.run_id)
    if run is None:
        restored = _restore(client, report, home, model_name=name, folder=inputs.evaluations)
        return replace(inputs, report=report.model_copy(update={"run_id": restored}))
    tags = run.data.tags
    problems = {
        "is deleted": run.info.lifecycle_stage != "active",
        f"is no evaluation of experiment {experiment!r}": run.info.experiment_id != home
        or tags.get(tag.KIND) != "evaluation",
        "scored another model": tags.get(tag.MODEL_NAME) != name or tags.get(tag.MODEL_DIGEST) != report.model_digest,
    }
    if found := [problem for problem, present in problems.items() if present]:
        raise InvalidInput(f"report.json: MLflow run {report.run_id} {found[0]}; run `dvc repro --force evaluation`")
    return inputs


def _restore(client: MlflowClient, report: EvaluationReport, experiment_id: str, *, model_name: str,
             folder: Path) -> str:
    with mlflow_errors():
        found = client.search_runs([experiment_id], f"tags.{tag.RESTORED} = '{report.run_id}' and "
                                   f"tags.`{tag.MODEL_NAME}` = '{model_name}' and tags.`{tag.MODEL_DIGEST}` = "
                                   f"'{report.model_digest}' and attributes.status = 'FINISHED'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        logger.info("MLflow lacks run %s (the address changed?); logging it anew", report.run_id)
        tags = {tag.KIND: "evaluation", tag.MODEL_NAME: model_name, tag.MODEL_DIGEST: report.model_digest,
                tag.CONTRACT: report.contract_digest, tag.WEIGHTS: report.weights_digest(), tag.RESTORED: report.run_id}
        run = client.create_run(experiment_id, run_name="evaluation", tags=tags)
        metrics = [Metric(name, float(value), 0, 0) for name, value in report.logged_metrics().items()]
        client.log_batch(run.info.run_id, metrics=metrics)
        client.log_artifacts(run.info.run_id, str(folder))
        client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


class Journal:
    """Appends to .promotion/<first 12 of the key>/journal.jsonl, flushed line by line."""

    def __init__(self, key: str) -> None:
        self._path = FOLDER / key[:12] / "journal.jsonl"

    def note(self, step: Step) -> None:
        """Write that a step is about to be taken."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = {"time": datetime.now(UTC).isoformat(), "pid": os.getpid(), "step": step.value}
        with self._path.open("a", encoding="ascii") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Trace:
    """The last step in a journal; `running` is True while its process runs."""

    key: str
    step: Step
    time: str
    pid: int
    running: bool


def traces() -> Iterator[Trace]:
    """The last line of every journal on this machine. A line that a crash cut short is ignored."""
    for path in sorted(FOLDER.glob("*/journal.jsonl")):
        for text in reversed(path.read_text(encoding="ascii", errors="replace").splitlines()):
            try:
                line = json.loads(text)
                yield Trace(path.parent.name, Step(line["step"]), str(line["time"]), int(line["pid"]),
                            Path("/proc", str(line["pid"])).exists())
            except (ValueError, KeyError, TypeError):
                continue
            break
