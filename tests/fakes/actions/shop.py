"""A team's repository with everything that its workflow talks to: bare origin, DVC remote, MLflow server, Hub."""

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from src.core.params import MlflowParams
from src.ledger.slots import LedgerView
from tests.fakes.actions.harness import Event, GitHub, Job, git, read
from tests.fakes.loopback_github import TOKEN, GitServer, LoopbackGithub
from tests.fakes.loopback_hub import WRITE, LoopbackHub
from utils import mlflow_utils
from utils.tracking.ledger import MlflowLedger

ROOT = Path(__file__).parents[3]
PIPELINE = ROOT / ".github/workflows/pipeline.yml"
REPO, NAME = "acme/shop", "ecommerce-chatbot"  # on GitHub and on the Hub alike
USER, PASSWORD = "deployer", "s3cret-of-mlflow"
_TINY: Mapping[str, Mapping[str, Any]] = {
    "model": {"pocket": {"hidden_size": 64, "layers": 1, "epochs": 1, "seed": 7}},
    "fine_tuning": {"epochs": 1, "max_length": 64},
    "evaluation": {"max_new_tokens": 12, "max_rows": 16},
    "deployment": {"verified_rows": 2, "huggingface": {
        "model_id": REPO, "push_to_hub": True, "create_model_card": True, "private": True, "deadline_seconds": 60}},
}
_ROWS = 160


@dataclass
class Shop:
    """One test's team: `clone` is a member's, whose pushes start the workflow."""

    root: Path
    hub: LoopbackHub
    tracking_uri: str
    git: GitServer
    api: LoopbackGithub
    runs: list[dict[str, Job]] = field(default_factory=list)

    @property
    def clone(self) -> Path:
        return self.root / "clone"

    @property
    def origin(self) -> Path:
        return self.root / "git" / REPO

    @property
    def github(self) -> GitHub:
        return GitHub(
            origin=self.origin, root=self.root / "runs", environment="promotion", api=self.api.url,
            server=self.git.url, repository=REPO, token=TOKEN, granted=self.grant, remote=f"{self.git.url}/{REPO}",
            secrets={"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD, "HF_TOKEN": WRITE},
            variables={"MLFLOW_TRACKING_URI": self.tracking_uri, "HF_ENDPOINT": self.hub.url},
            runner={"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1,localhost", "HF_HUB_DISABLE_XET": "1"})

    def grant(self, permissions: Mapping[str, str]) -> None:
        """What the token of the job that begins may do."""
        self.git.may_write = permissions.get("contents") == "write"
        self.api.refuse = None if permissions.get("pull-requests") == "write" else 403

    def make(self, **deployment: object) -> None:
        """The repository as it stands here, made tiny, with a first push to its main branch."""
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                                capture_output=True, text=True, check=True).stdout
        for name in listed.split("\0"):
            if name and (ROOT / name).is_file() and not name.startswith(("results/", "docs/")) and name != "dvc.lock":
                (self.clone / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.clone / name)
        _shrink(self.clone, deployment)
        (self.clone / "results").mkdir(exist_ok=True)
        (self.root / "remote").mkdir()
        with (self.clone / ".dvc/config").open("a") as config:
            config.write(f"    remote = shared\n['remote \"shared\"']\n    url = {self.root / 'remote'}\n")
        git(self.root, "init", "--quiet", "--bare", "--initial-branch=main", str(self.origin))
        git(self.origin, "config", "http.receivepack", "true")
        git(self.origin, "config", "uploadpack.allowAnySHA1InWant", "true")
        git(self.clone, "init", "--quiet", "--initial-branch=main")
        git(self.clone, "config", "user.name", "Mona")
        git(self.clone, "config", "user.email", "mona@example.com")
        git(self.clone, "remote", "add", "origin", str(self.origin))
        self.commit("First")
        git(self.clone, "push", "--quiet", "origin", "main")

    def commit(self, message: str) -> None:
        git(self.clone, "add", "--all")
        git(self.clone, "commit", "--quiet", "--message", message)

    def set(self, **changes: Mapping[str, object]) -> None:
        """Change sections of params.yaml in the clone."""
        path = self.clone / "params.yaml"
        values = yaml.safe_load(path.read_text())
        for section, change in changes.items():
            values[section] |= change
        path.write_text(yaml.safe_dump(values))

    def push(self, branch: str = "main") -> dict[str, Job]:
        """Push the clone's branch, and run what that starts."""
        git(self.clone, "push", "--quiet", "origin", branch)
        return self.start(Event("push", branch))

    def dispatch(self, branch: str = "main", **inputs: object) -> dict[str, Job]:
        """Press the button."""
        return self.start(Event("workflow_dispatch", branch, inputs))

    def start(self, event: Event) -> dict[str, Job]:
        self.runs.append(self.github.run(read(PIPELINE), event))
        return self.runs[-1]

    def pull(self, branch: str = "main") -> None:
        git(self.clone, "pull", "--quiet", "origin", branch)

    @property
    def client(self) -> MlflowClient:
        return mlflow_utils.connect(MlflowParams(tracking_uri=self.tracking_uri, experiment_name="x",
                                                 deadline_seconds=30))

    @property
    def view(self) -> LedgerView:
        return MlflowLedger(self.client, NAME, "ecommerce-chatbot-evaluation").view()

    @property
    def champion(self) -> str | None:
        """The version that the alias names."""
        found = self.client.search_registered_models(f"name = '{NAME}'")
        version = found[0].aliases.get("champion") if found else None
        return str(version) if version else None

    def info(self, branch: str) -> dict[str, Any]:
        """deployment_info.json as it is committed on a branch at origin."""
        text = git(self.origin, "show", f"{branch}:results/deployment/deployment_info.json")
        found: dict[str, Any] = json.loads(text)
        return found


def log_in(patch: pytest.MonkeyPatch) -> None:
    """This process asks the same server."""
    patch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def _shrink(clone: Path, deployment: Mapping[str, object]) -> None:
    values = yaml.safe_load((clone / "params.yaml").read_text())
    for section, changes in _TINY.items():
        values[section] |= changes
    values["deployment"] |= deployment
    (clone / "params.yaml").write_text(yaml.safe_dump(values))
    data = clone / values["data"]["path"]
    with data.open(newline="") as file:
        rows = list(csv.reader(file))
    with data.open("w", newline="") as file:
        csv.writer(file).writerows(rows[:_ROWS])
    os.utime(data)
