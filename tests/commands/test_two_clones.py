"""Two clones that share a DVC remote and an MLflow server: the second trains nothing, and decides afresh."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.postgres import MlflowServer

ROOT = Path(__file__).parents[2]
TRAINED = ("data_preprocessing", "base_model", "fine_tuning", "evaluation")
SMALL = {
    "model": {"pocket": {"hidden_size": 32, "layers": 1, "epochs": 1}},
    "fine_tuning": {"epochs": 1}, "evaluation": {"max_rows": 16, "max_new_tokens": 16},
    "deployment": {"verified_rows": 2},
}


class Clone:
    """A working copy and the commands that are run in it."""

    def __init__(self, root: Path, server: str) -> None:
        self.root = root
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "HF_", "GITHUB_"))
        } | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(root),
             "MLFLOW_TRACKING_URI": server, "OMP_NUM_THREADS": "1", "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@e",
             "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@e", "HF_HUB_OFFLINE": "1"}

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.root, env=self._environment, capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def reproduce(self) -> tuple[list[str], str]:
        """Run the pipeline; the stages that did not skip, and what the deployment came to."""
        said = self.run("dvc", "repro")
        (result,) = re.findall(r"^PROMOTE result=(\w+) code=0 ", said, flags=re.MULTILINE)
        return re.findall(r"^Running stage '(\w+)'", said, flags=re.MULTILINE), result

    def change(self, values: dict[str, Any]) -> None:
        path = self.root / "params.yaml"
        path.write_text(yaml.safe_dump(laid_over(yaml.safe_load(path.read_text()), values), sort_keys=False))

    def recorded(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.root / "results/deployment" / name).read_text()))


def laid_over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return base | {key: laid_over(base[key], value) if isinstance(value, dict) else value
                   for key, value in changes.items()}


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
    """The files of this working tree as a repository of their own, with parameters for a minute's work."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True,
                            text=True, check=True).stdout.split("\0")
    clone = Clone(tmp_path / "first", server)
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "results/")) and name != "dvc.lock":
            (clone.root / name).parent.mkdir(parents=True, exist_ok=True)
            (clone.root / name).write_bytes((ROOT / name).read_bytes())
    data = clone.root / "data/customer_support.csv"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:301]))
    clone.change(SMALL)
    clone.run("git", "init", "-q", "-b", "main")
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
