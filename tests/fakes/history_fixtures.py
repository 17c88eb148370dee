"""history_script.py called in this process, over a store that the gate itself has filled."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from scripts import history_script
from src.core.params import MlflowParams, Params, load_params
from src.core.records import EvaluationReport
from tests.fakes import history_store, promoted
from tests.fakes.history_store import answers, challenger, deploy
from utils import mlflow_utils

ROOT = Path(__file__).parents[2]
Run = Callable[..., str]


@pytest.fixture
def config(mlflow_params: MlflowParams, tmp_path: Path) -> Path:
    return history_store.write_params(tmp_path, ROOT / "params.yaml")


@pytest.fixture
def params(config: Path) -> Params:
    return load_params(config)


@pytest.fixture
def run(config: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """What the script prints, given its flags; failures are raised."""

    def called(*flags: str) -> str:
        capsys.readouterr()
        assert promoted.run(history_script, "--config", config, *flags) == 0
        return capsys.readouterr().out

    return called


def evaluate_and_deploy(config: Path, params: Params, *marks: tuple[str, int]) -> list[EvaluationReport]:
    """Challengers with so many right answers, each brought before the gate; returns their reports."""
    reports = []
    for mark, right in marks:
        reports.append(challenger(params, mark, answers(right)))
        deploy(config)
    return reports


def client(params: Params) -> MlflowClient:
    return mlflow_utils.connect(params.mlflow)


def evidence_of(params: Params, evaluation: EvaluationReport) -> Path:
    """The evidence.json of the latest deployment of an evaluation, in the artifact store."""
    key = evaluation.model.key(evaluation.contract_digest)
    home = client(params).get_experiment_by_name(params.mlflow.experiment_name).experiment_id
    (found, *_) = client(params).search_runs([home], f"tags.`champion.key` = '{key}' and tags.kind = 'deployment'")
    return Path(found.info.artifact_uri) / "evidence.json"
