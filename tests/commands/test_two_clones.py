"""Two clones that share a DVC remote and an MLflow server: the second trains nothing, and decides afresh."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.clones import SMALL, Clone, copy_of_this_tree
from tests.fakes.postgres import MlflowServer

TRAINED = ("data_preprocessing", "base_model", "fine_tuning", "evaluation")


@pytest.fixture
def server(tmp_path: Path, migrated_store: Path) -> Iterator[str]:
    """With OLD_MLFLOW, an address, that server instead: how the doctor's oldest version was measured."""
    if address := os.environ.get("OLD_MLFLOW"):
        yield address
        return
    (tmp_path / "mlflow.db").write_bytes(migrated_store.read_bytes())
    with MlflowServer(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts", workers=1) as started:
        yield started.url


@pytest.fixture
def first(tmp_path: Path, server: str) -> Clone:
    clone = Clone(tmp_path / "first", server)
    copy_of_this_tree(clone, rows=300)
    clone.change(SMALL)
    return clone


@pytest.mark.slow  # two pipelines and a half, with torch
def test_a_second_clone_reproduces_without_training_and_decides_against_the_first(
    first: Clone, server: str, tmp_path: Path
) -> None:
    first.run("dvc", "remote", "add", "-d", "storage", str(tmp_path / "storage"))
    assert first.reproduce() == ([*TRAINED, "deployment", "report"], "promoted")
    first.run("dvc", "push")
    first.run("git", "add", "-A")
    first.run("git", "commit", "-qm", "First")

    first.run("git", "clone", "-q", str(first.root), str(tmp_path / "second"))
    second = Clone(tmp_path / "second", server)
    second.run("dvc", "pull", "--allow-missing")
    assert second.reproduce() == (["deployment", "report"], "already")
    assert second.run("git", "status", "--porcelain") == ""  # "already" leaves even the decision's files as they were

    second.change({"fine_tuning": {"learning_rate": 1e-9}})
    assert second.reproduce() == (["fine_tuning", "evaluation", "deployment", "report"], "kept")
    evaluation_run = first.recorded("deployment_info.json")["evaluation_run"]
    assert second.recorded("model_comparison.json")["best_promoted"]["run_id"] == evaluation_run
    assert second.recorded("deployment_info.json")["champion"]["version"] == 1
