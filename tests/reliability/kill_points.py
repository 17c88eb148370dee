"""Where a deployment is killed: before each step, and between the parts of a step.

Each point wraps something in the deployer's own process, which then sends SIGKILL to itself. Nothing in the code under
test knows of it.
"""

import importlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import httpx2
from huggingface_hub import HfApi
from mlflow import MlflowClient

from src.promotion.protocol import Step
from tests.fakes import weightless_assembly
from utils import json_utils, mlflow_utils, process, results
from utils.tracking import deployments
from utils.tracking.tag import KEY

Arm = Callable[[], None]
BOTH, FIRST, LATER = "both", "first", "later"  # with which prior state a point is met


@dataclass(frozen=True)
class Point:
    """A place in a run. priors: with which prior state it is met; faults slow the Hub down, to be killed in time."""

    name: str
    arm: Arm
    priors: str = BOTH
    faults: tuple[dict[str, Any], ...] = field(default=())

    def met(self, *, champion: bool) -> bool:
        """Whether a run with, or without, a prior champion comes by."""
        return self.priors == BOTH or (self.priors == LATER) == champion


def kill() -> NoReturn:
    """SIGKILL to this process."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _before(step: Step, nth: int = 1) -> Arm:
    """Before the nth time that a step is taken, once the journal tells of it."""
    return _after(deployments.Journal, "note", f"^{step.value}$", nth)


def _after(owner: Any, name: str, about: str = "", nth: int = 1) -> Arm:
    """Once the nth such call has had its effect, before its answer is known.

    `about` is a pattern of one of its arguments; a module too heavy to be imported by every deployer is given by name.
    """
    return lambda: _wrap(owner, name, about, nth, after=True)


def _ahead(owner: Any, name: str, about: str = "") -> Arm:
    return lambda: _wrap(owner, name, about, 1, after=False)


def _wrap(owner: Any, name: str, about: str, nth: int, *, after: bool) -> None:
    owner = importlib.import_module(owner) if isinstance(owner, str) else owner
    original, calls = getattr(owner, name), count(1)

    def call(*args: Any, **kwargs: Any) -> Any:
        now = any(re.search(about, str(each)) for each in (*args, *kwargs.values())) and next(calls) == nth
        if now and not after:
            kill()
        answer = original(*args, **kwargs)
        if now:
            kill()
        return answer

    setattr(owner, name, call)


def _when_the_hub_gets(method: str, path: str, nth: int = 1, later: float = 0.0) -> Arm:
    """While the upload's own process is talking: `later` seconds after the Hub got the nth such request."""

    def watch() -> None:
        while True:
            log = httpx2.get(f"{os.environ['HF_ENDPOINT']}/_log", trust_env=False).json()
            if sum(entry["method"] == method and path in entry["path"] for entry in log) >= nth:
                time.sleep(later)
                kill()
            time.sleep(0.01)

    return lambda: threading.Thread(target=watch, daemon=True).start()


def _half_a_line() -> None:
    def note(self: deployments.Journal, _step: Step) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write('{"time": "2026-1')
        kill()

    deployments.Journal.note = note  # type: ignore[method-assign, assignment]


def _some_of_the_model() -> None:
    def log_artifacts(self: mlflow_utils.Client, run_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        self.log_artifact(run_id, f"{local_dir}/model.safetensors", artifact_path)
        kill()

    mlflow_utils.Client.log_artifacts = log_artifacts  # type: ignore[method-assign]


_PART = {"path": "^/_lfs/", "method": "PUT", "nth": 3, "times": 99, "delay": 2.0}
_LATE = {"path": "/commit/release", "delay": 1.0}
_LOST = {"path": "/commit/release", "delay": 5.0, "after": True}
_LOST_MIRROR = {"path": "/commit/ledger", "delay": 5.0, "after": True}
_VERIFY = {"path": "^/_verify", "delay": 2.0}

POINTS = (
    Point("before preflight", _before(Step.PREFLIGHT)),
    Point("journal line half written", _half_a_line),
    Point("ledger run made, not pinned", _after(MlflowClient, "create_run", "'kind': 'ledger'"), FIRST),
    Point("ledger pinned, reply unread", _after(MlflowClient, "create_experiment", r"\.ledger$"), FIRST),
    Point("probe written, not checked", _after(MlflowClient, "log_param", "^probe")),
    Point("before reconcile", _before(Step.RECONCILE)),
    Point("before the reconcile's look", _before(Step.SETTLE)),
    Point("before the reconcile's mirror", _before(Step.MIRROR)),
    Point("before decide", _before(Step.DECIDE)),
    Point("before assemble", _before(Step.ASSEMBLE)),
    Point("release folder half written", _after(weightless_assembly, "write_weights")),
    Point("release folder written, not in place", _ahead(weightless_assembly, "put_in_place")),
    Point("before register", _before(Step.REGISTER)),
    Point("registered model made", _after(MlflowClient, "create_registered_model"), FIRST),
    Point("deployment run made", _after(MlflowClient, "create_run", "'kind': 'deployment'")),
    Point("model kept in part", _some_of_the_model),
    Point("model kept, no version", _ahead(MlflowClient, "create_model_version")),
    Point("version made, reply unread", _after(MlflowClient, "create_model_version")),
    Point("before publish", _before(Step.PUBLISH)),
    Point("repository made", _after(HfApi, "create_repo"), FIRST),
    Point("release branch made", _after(HfApi, "create_branch", "^release/")),
    Point("upload: third of six parts", _when_the_hub_gets("PUT", "/_lfs/", 3), faults=(_PART,)),
    Point("upload: all parts there, no commit", _when_the_hub_gets("POST", "/_verify"), faults=(_VERIFY,)),
    Point("upload: commit on its way, done later", _when_the_hub_gets("POST", "/commit/release", later=0.1),
          faults=(_LATE,)),
    Point("upload: commit made, reply unread", _when_the_hub_gets("POST", "/commit/release", later=0.5),
          faults=(_LOST,)),
    Point("before claim", _before(Step.CLAIM)),
    Point("slot written, reply unread", _after(MlflowClient, "log_param", "^s0")),
    Point("before project_hub", _before(Step.PROJECT_HUB)),
    Point("main committed, reply unread", _after(HfApi, "create_commit")),
    Point("main shown, no tag", _ahead(HfApi, "create_tag")),
    Point("tag made, not read back", _after(HfApi, "create_tag")),
    Point("release branch gone", _after(HfApi, "delete_branch")),
    Point("before project_champion", _before(Step.PROJECT_CHAMPION)),
    Point("alias champion set", _after(MlflowClient, "set_registered_model_alias", "^champion$")),
    Point("before project_previous", _before(Step.PROJECT_PREVIOUS)),
    Point("alias previous set", _after(MlflowClient, "set_registered_model_alias", "^previous$"), LATER),
    Point("before project_stage", _before(Step.PROJECT_STAGE)),
    Point("stage Production set", _after(MlflowClient, "transition_model_version_stage", "^Production$")),
    Point("old champion archived", _after(MlflowClient, "transition_model_version_stage", "^Archived$"), LATER),
    Point("before settle", _before(Step.SETTLE, 2)),
    Point("before mirror", _before(Step.MIRROR, 2)),
    Point("mirror's branch made", _after(HfApi, "create_branch", "^ledger"), FIRST),
    Point("mirror committed, reply unread", _when_the_hub_gets("POST", "/commit/ledger", later=0.5),
          faults=(_LOST_MIRROR,)),
    Point("before record", _before(Step.RECORD)),
    Point("ledger copied, no comparison", _after(results, "write_ledger")),
    Point("comparison written, no info", _after(json_utils, "write_object", f"/{results.COMPARISON}$")),
    Point("info written beside its place", _ahead(Path, "replace", f"/{results.INFO}$")),
    Point("info written, nothing in MLflow", _after(json_utils, "write_object", f"/{results.INFO}$")),
    Point("deployment run in part", _after(MlflowClient, "log_batch")),
    Point("deployment run not ended", _after(MlflowClient, "log_dict")),
    Point("deployment run ended, older ones open", _ahead(MlflowClient, "search_runs", f"'RUNNING' and tags.`{KEY}`")),
    Point("all done, process not ended", _after(process, "promote_line")),
)
MERGING = (
    Point("weights merged in memory", _after("src.models.merging", "merge")),
    Point("merged weights written, no manifest", _after("src.models.merging", "save")),
    Point("release in place, not verified", _after("src.promotion.release", "_put_in_place")),
    Point("MLflow's copy saved, not kept", _after("scripts.commands.assemble", "save_flavour")),
)
# With a champion that was promoted without the Hub, which the run publishes.
PUBLISHING_AGAIN = (
    Point("before republish", _before(Step.REPUBLISH)),
    Point("before the claim of what was republished", _before(Step.CLAIM_REPUBLISHED)),
    *(point for point in POINTS if point.name in {
        "before decide", "repository made", "release branch made", "upload: third of six parts",
        "upload: all parts there, no commit", "upload: commit on its way, done later",
        "upload: commit made, reply unread", "slot written, reply unread", "before project_hub",
        "main committed, reply unread", "main shown, no tag", "tag made, not read back", "release branch gone",
        "mirror's branch made", "mirror committed, reply unread", "before record",
        "info written, nothing in MLflow", "deployment run not ended"}),
)
NAMED = {point.name: point for point in (*POINTS, *MERGING, *PUBLISHING_AGAIN)}
