"""A command in a folder that is not the project's, or beside a store that does not exist: it makes nothing there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scripts import (
    base_model_script,
    data_preprocessing_script,
    deployment_script,
    doctor_script,
    evaluation_script,
    fine_tuning_script,
    history_script,
    pipeline_script,
    report_script,
    rollback_script,
    space_script,
    status_script,
    summary_script,
)
from src.core.errors import InvalidParams, Refused, Undecided
from tests.fakes.history_store import write_params
from tests.fakes.promoted import run
from tests.fakes.weightless import call

ROOT = Path(__file__).parents[2]
SCRIPTS = [base_model_script, data_preprocessing_script, evaluation_script, fine_tuning_script, history_script,
           report_script, rollback_script, space_script, status_script, summary_script]
CALLS = [*((script, ()) for script in SCRIPTS), (status_script, ("--repair",)), (summary_script, ("--comment",)),
         *((pipeline_script, (step,)) for step in pipeline_script.STEPS)]


def somewhere(folder: Path) -> str:
    return f"params.yaml: not found in {folder}; run it in the repository's folder (`cd {ROOT}`)"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize(("script", "flags"), CALLS, ids=[f"{script.__name__} {flags}" for script, flags in CALLS])
def test_from_another_folder_a_command_says_from_where_to_run_it_and_makes_nothing(
    script: ModuleType, flags: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(InvalidParams) as refused:
        run(script, *flags)
    assert str(refused.value).startswith(somewhere(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [(), ("--dry-run",), ("--output-dir", "records")])
def test_from_another_folder_a_deployment_leaves_no_records_there(
    flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*flags) == 2
    assert somewhere(tmp_path) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_from_another_folder_the_doctor_says_from_where_to_run_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(doctor_script) == 2
    assert somewhere(tmp_path) in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_script_that_is_started_from_another_folder_ends_with_2_in_one_line(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, deployment_script.__file__], env={**os.environ, "PYTHONPATH": str(ROOT)},
                           capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.splitlines()[0].startswith(f"ERROR {somewhere(tmp_path)}")) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_the_status_and_the_history_of_a_store_that_does_not_exist_are_empty_and_make_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(tmp_path, ROOT / "params.yaml")
    assert run(status_script, "--json") == 0
    assert json.loads(capsys.readouterr().out)["champion"] is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow has put its address there
    assert run(history_script) == 0
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(Refused):
        run(rollback_script)
    assert caplog.text.count("mlflow.db: does not exist yet, so nothing was evaluated or promoted in this store") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_where_a_record_names_a_champion_a_store_that_does_not_exist_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(tmp_path, ROOT / "params.yaml")
    (tmp_path / "results/deployment").mkdir(parents=True)
    (tmp_path / "results/deployment/deployment_info.json").write_text(
        '{"champion": {"version": 3, "key": "x"}, "model_name": "ecommerce-chatbot"}')
    before = sorted(tmp_path.rglob("*"))
    assert run(status_script) == 1
    assert "names version 3 as champion; the ledger says no version; the store is lost" in capsys.readouterr().out
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow has put its address there
    with pytest.raises(Undecided, match=r"deployment_info\.json names version 3 as champion, but MLflow holds no"):
        run(rollback_script)
    assert sorted(tmp_path.rglob("*")) == before
