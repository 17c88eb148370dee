"""Bring an evaluated model back from MLflow and before the gate."""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow.entities import Run

from src.errors import InvalidInput, InvalidParams, Refused
from src.manifest import manifest, tree_digest
from src.records import BASE_MODEL, MODEL_LOCATION, BaseModelRef, EvaluationReport, FineTunedModel
from utils import json_utils, mlflow_utils, yaml_utils
from utils.evaluation_run import ADAPTER
from utils.history_runs import HistoryRuns

logger = logging.getLogger("champion")

_SCRATCH = Path(".promotion")
_DEPLOYMENT = Path(__file__).with_name("deployment_script.py")
_FILES = ("metrics.json", "report.json", "predictions.jsonl")


def promote(config: Path, run_id: str, reason: str | None) -> int:
    """Put an evaluated model together as the stages left it, and run the deployment with it; returns its exit code.

    Raises InvalidParams for a run that is no evaluation of this model, InvalidInput where a file of it is gone,
    Refused where its base model is not the one at hand.
    """
    params = yaml_utils.load_params(config)
    client = mlflow_utils.connect(params.mlflow)
    runs = HistoryRuns(client, experiment=params.mlflow.experiment_name,
                       model_name=params.deployment.model_registry_name)
    run = runs.find(run_id, "evaluation")
    _SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="restored-", dir=_SCRATCH) as scratch:
        folder = Path(scratch)
        for name in _FILES:
            runs.download(run_id, name, folder)
        report = EvaluationReport.parse(json_utils.read_object(folder / "report.json"), where=f"run {run_id}")
        _check_base(report)
        model = _restore(runs, run, report, folder)
        location = folder / MODEL_LOCATION.name
        json_utils.write_object(location, model.model_dump(mode="json"))
        command = [sys.executable, str(_DEPLOYMENT), "--config", str(config), "--evaluation-results",
                   str(folder / "metrics.json"), "--model-artifact-path", str(location)]
        command += [] if reason is None else ["--reason", reason]
        return subprocess.run(command, check=False).returncode


def _check_base(report: EvaluationReport) -> None:
    base = BaseModelRef.parse(json_utils.read_object(BASE_MODEL), where=BASE_MODEL)
    if base.sha256 != report.model.base_sha256:
        raise Refused(f"run {report.run_id}: was trained on base {report.model.base_name}@{report.model.base_revision} "
                      f"(sha256 {report.model.base_sha256[:12]}), results/base_model is {base.name}@{base.revision} "
                      f"({base.sha256[:12]}); set model.base_model and model.revision, and run `dvc repro base_model`")


def _restore(runs: HistoryRuns, evaluation: Run, report: EvaluationReport, folder: Path) -> FineTunedModel:
    """The adapter below `folder` and its record, from the run that trained it."""
    wanted = report.model.adapter_sha256
    trained = next(runs.search(f"tags.`{ADAPTER}` = '{wanted}' and tags.kind = 'fine_tuning' and "
                               "attributes.status = 'FINISHED'"), None)
    if trained is None:
        raise InvalidParams(f"run {evaluation.info.run_id}: MLflow has no training run of its adapter {wanted[:12]}; "
                            "train it again with `dvc repro fine_tuning evaluation` on its commit")
    name = trained.info.run_id
    adapter = runs.download(name, "adapter", folder)
    if tree_digest(manifest(adapter)) != wanted:
        raise InvalidInput(f"MLflow run {name}: its adapter is not {wanted[:12]} any more, so the artifact store was "
                           "changed; restore it from a backup")
    location = runs.download(name, MODEL_LOCATION.name, folder)
    model = FineTunedModel.parse(json_utils.read_object(location), where=f"MLflow run {name}: {location.name}")
    logger.info("restored adapter %s from run %s", wanted[:12], name)
    return model.model_copy(update={"adapter_path": Path(os.path.relpath(adapter)).as_posix()})
