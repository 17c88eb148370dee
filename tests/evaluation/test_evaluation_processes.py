"""Evaluation in several processes, by accelerate's launcher: the same file, one run, and a re-run that resumes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from src.core.params import MlflowParams
from src.core.records import EvaluationReport
from tests.fakes.evaluated_shop import REPOSITORY, kept, promote, write_shop

LAUNCH = str(REPOSITORY / "scripts/launch_script.py")
STAGE = str(REPOSITORY / "scripts/evaluation_script.py")
RESULTS = Path("results/evaluations")
ANSWERS = RESULTS / "predictions.jsonl"


@pytest.fixture
def shop(request: pytest.FixtureRequest, mlflow_params: MlflowParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
         ) -> Path:
    """With a split of six batches, one row each, if a test does not give another number of tokens per batch."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    write_shop(tmp_path, mlflow_params, tokens_per_batch=getattr(request, "param", 1))
    return tmp_path


def start(stage: Sequence[str], *, processes: int) -> "subprocess.CompletedProcess[str]":
    launcher = [LAUNCH, "--num_processes", str(processes)] if processes > 1 else []
    return subprocess.run([sys.executable, *launcher, *stage], check=False, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(REPOSITORY)})


def evaluated(*flags: str, processes: int) -> "subprocess.CompletedProcess[str]":
    done = start([STAGE, *flags], processes=processes)
    assert done.returncode == 0, done.stderr
    return done


def runs(shop: Path) -> list[Run]:
    """The evaluations in MLflow, the latest first."""
    return list(MlflowClient(f"sqlite:///{shop}/mlflow.db").search_runs(["1"], "tags.kind = 'evaluation'"))


def report() -> EvaluationReport:
    return EvaluationReport.load(RESULTS / "report.json")


@pytest.mark.slow
@pytest.mark.parametrize("shop", [1, 100_000], indirect=True, ids=["six batches", "fewer batches than processes"])
def test_two_processes_write_what_one_writes_and_the_first_alone_talks_to_mlflow(shop: Path) -> None:
    evaluated(processes=1)
    alone, metrics = ANSWERS.read_bytes(), report().metrics
    ANSWERS.unlink()
    shared = evaluated(processes=2)
    assert ANSWERS.read_bytes() == alone
    assert report().metrics == metrics
    assert [(run.info.status, run.info.run_id == report().run_id) for run in runs(shop)] == [
        ("FINISHED", True), ("FINISHED", False)]
    assert shared.stdout.count("evaluation: score") == 1
    assert [line for line in shared.stderr.splitlines() if not line.startswith("INFO ")] == []
    assert shared.stderr.count("INFO merged") == 1
    assert list((shop / "results/checkpoints").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_one_line_and_the_rerun_of_any_number_resumes(shop: Path, rank: int) -> None:
    evaluated(processes=1)
    undisturbed = ANSWERS.read_bytes()
    for path in RESULTS.iterdir():
        path.unlink()
    killed = start(["-m", "tests.fakes.killed_evaluation", "after", "1", str(rank)], processes=2)
    assert killed.returncode == 75, killed.stderr
    assert [line for line in killed.stderr.splitlines() if not line.startswith("INFO ")] == [
        f"ERROR process {rank} of the stage was ended by SIGKILL; run it again, it goes on from what is saved"]
    assert list(RESULTS.iterdir()) == []
    assert runs(shop)[0].info.status == ("RUNNING" if rank == 0 else "FAILED")
    saved = kept(shop)
    assert 2 <= len(saved) <= 5

    again = start(["-m", "tests.fakes.killed_evaluation", "records", "0", "0"], processes=2)
    assert f"resuming: {len(saved)} of 6 batches were answered before" in again.stderr
    assert sorted(batch.places for batch in kept(shop)) == [[place] for place in range(6)]
    ANSWERS.unlink()
    last = evaluated(processes=1)
    assert "resuming: 6 of 6 batches were answered before" in last.stderr
    assert ANSWERS.read_bytes() == undisturbed
    assert list((shop / "results/checkpoints").iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's, of its own code
def test_the_first_process_fetches_the_champion_for_all(shop: Path) -> None:
    evaluated(processes=1)
    promote(report(), shop)
    (shop / "results/adapter/adapter_model.safetensors").unlink()
    shared = evaluated("--model", "champion", processes=2)
    again, own = runs(shop)
    assert again.data.metrics == own.data.metrics
    assert shared.stderr.count("INFO fetched the champion") == 1


@pytest.mark.slow
def test_what_the_first_process_alone_finds_ends_the_stage_with_its_exit_code_and_line(shop: Path) -> None:
    refused = start([STAGE, "--model", "champion"], processes=2)
    assert refused.returncode == 4
    (line,) = (line for line in refused.stderr.splitlines() if not line.startswith("INFO "))
    assert "no model was promoted yet" in line
    assert runs(shop) == []


@pytest.mark.slow
def test_a_stage_that_is_terminated_ends_all_its_processes(shop: Path) -> None:
    stage = subprocess.Popen([sys.executable, LAUNCH, "--num_processes", "2", "-m", "tests.fakes.killed_evaluation",
                              "hangs", "0", "1"], stderr=subprocess.PIPE, text=True,
                             env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    while len(kept(shop)) < 3:  # all that the first process has to answer
        assert stage.poll() is None
        time.sleep(0.1)
    stage.send_signal(signal.SIGTERM)
    assert stage.wait(120) == 128 + signal.SIGTERM
    assert runs(shop)[0].info.status == "FAILED"
