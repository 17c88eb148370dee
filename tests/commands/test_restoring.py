"""history_script.py --promote: an evaluated model comes back from MLflow and goes before the gate."""

import shutil
from pathlib import Path

import pytest

from scripts.commands.history import promote
from src.core.errors import InvalidInput, InvalidParams, Refused
from src.core.params import Params
from src.core.records import EvaluationReport
from tests.fakes.history_fixtures import client, config, params
from tests.fakes.history_store import BASE, answers, challenger, deploy
from utils import json_utils, mlflow_utils
from utils.tracking import runs
from utils.tracking.deployments import latest

__all__ = ["config", "params"]  # fixtures, found by their names


@pytest.fixture
def lone(config: Path, params: Params) -> EvaluationReport:
    """A model that was trained and evaluated and never deployed; another one is in results/ and is the champion."""
    report = challenger(params, "lone", answers(10))
    tags = {"champion.model_name": params.deployment.model_registry_name}
    with mlflow_utils.stage_run(params.mlflow, kind="fine_tuning", name="fine_tuning", tags=tags) as run_id:
        runs.log_fine_tuning(run_id, params, {}, adapter=Path("results/adapter"), base=Path("results/base_model"),
                            adapter_sha256=report.model.adapter_sha256,
                            location=Path("results/fine_tuned_model_location.json"))
    challenger(params, "a", answers(30))
    deploy(config, "--force-deploy")
    json_utils.write_object(Path("results/base_model.json"), BASE.model_dump())
    return report


def training_folder(params: Params, report: EvaluationReport) -> Path:
    home = client(params).get_experiment_by_name(params.mlflow.experiment_name).experiment_id
    query = f"tags.`champion.adapter_sha256` = '{report.model.adapter_sha256}' and tags.kind = 'fine_tuning'"
    (run,) = client(params).search_runs([home], query)
    return Path(run.info.artifact_uri)


def test_the_model_goes_to_the_gate_and_results_are_kept(config: Path, params: Params, lone: EvaluationReport) -> None:
    before = Path("results/adapter/adapter_model.safetensors").read_bytes()
    assert promote(config, lone.run_id, "a second look") == 0
    name, experiment = params.deployment.model_registry_name, params.mlflow.experiment_name
    (last, *_) = latest(client(params), experiment, name, count=1, running=False)
    assert last.key == lone.model.key(lone.contract_digest)
    assert (last.decision, last.reason) == ("keep", "not_best")
    assert Path("results/adapter/adapter_model.safetensors").read_bytes() == before
    assert not list(Path(".promotion").glob("restored-*"))


def test_on_another_base_model_it_is_refused(config: Path, lone: EvaluationReport) -> None:
    json_utils.write_object(Path("results/base_model.json"), {**BASE.model_dump(), "sha256": "c" * 64})
    with pytest.raises(Refused, match="dvc repro base_model"):
        promote(config, lone.run_id, None)


def test_a_changed_adapter_is_refused(config: Path, params: Params, lone: EvaluationReport) -> None:
    (training_folder(params, lone) / "adapter/adapter_model.safetensors").write_text("other weights")
    with pytest.raises(InvalidInput, match=r"is not .* any more"):
        promote(config, lone.run_id, None)


def test_what_mlflow_lacks_is_named(config: Path, params: Params, lone: EvaluationReport) -> None:
    folder = training_folder(params, lone)
    (folder / "fine_tuned_model_location.json").unlink()
    with pytest.raises(InvalidInput, match=r"fine_tuned_model_location\.json"):
        promote(config, lone.run_id, None)
    shutil.rmtree(folder / "adapter")
    with pytest.raises(InvalidInput, match="adapter"):
        promote(config, lone.run_id, None)
    client(params).delete_run(folder.parent.name)
    with pytest.raises(InvalidParams, match="no training run"):
        promote(config, lone.run_id, None)
    (Path(client(params).get_run(lone.run_id).info.artifact_uri) / "report.json").unlink()
    with pytest.raises(InvalidInput, match=r"report\.json"):
        promote(config, lone.run_id, None)
    assert not list(Path(".promotion").glob("restored-*"))
