"""Commands in processes of their own that may be killed: forks of one that imported everything, or fresh interpreters.

Their weights are bytes (tests.fakes.weightless_assembly), unless a job asks for the real merge.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fakes import weightless_assembly
from tests.fakes.loopback_hub import WRITE

ROOT = Path(__file__).parents[2]
KILLED = -9
SECONDS = 600  # no job takes as long
_FORKS, _FRESH = multiprocessing.get_context("forkserver"), multiprocessing.get_context("spawn")
_FORKS.set_forkserver_preload([
    "tests.reliability.jobs", "tests.reliability.kill_points", "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.tracking.rest_store", "scripts.status_script",
    "scripts.commands.deploy", "scripts.commands.services"])


class Ended(NamedTuple):
    """How a job ended: its exit code, negative for a signal, and what it said."""

    code: int
    out: str
    err: str


def start(home: Path) -> dict[str, str]:
    """Start the process that is forked, unless it runs; gives the environment of a job."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_TOKEN": WRITE,
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GITHUB_ACTOR": "tester", "LANG": "C.UTF-8"}
    with pytest.MonkeyPatch.context() as patch:  # huggingface_hub and MLflow read theirs when they are imported
        for name in [*os.environ]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return environment


def run(do: str, *arguments: str, folder: Path, environment: Mapping[str, str], at: str = "", merges: bool = False,
        fresh: bool = False) -> Ended:
    """Carry out a job of _WORK in a folder; `at` is the kill point. What it says is kept beside the folder."""
    out, err = folder.with_name("out"), folder.with_name("log")
    job = {"do": do, "arguments": arguments, "at": at, "merges": merges, "folder": folder, "environment": environment,
           "streams": (os.devnull, out, err)}
    process = (_FRESH if fresh else _FORKS).Process(target=_do, kwargs=job)
    out.write_text("")
    err.write_text("")
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
    return Ended(int(process.exitcode or 0), out.read_text(), err.read_text())


def _do(*, do: str, arguments: tuple[str, ...], at: str, merges: bool, folder: Path, environment: Mapping[str, str],
        streams: tuple[str | Path, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, file in enumerate(streams):
        os.dup2(os.open(file, os.O_RDWR | os.O_APPEND), stream)
    sys.argv = [do, *arguments]
    if not merges:
        sys.modules["scripts.commands.assemble"] = weightless_assembly  # before torch is imported for the real one
    if at:
        from tests.reliability.kill_points import NAMED

        NAMED[at].arm()
    _WORK[do](*arguments)


def _deploy(*_flags: str) -> None:
    from scripts import deployment_script
    from utils import process

    call = deployment_script.Deployment()
    process.run(call.run, announce=call.failed)


def _evaluate(mark: str, right: str) -> None:
    """Leave results/ as training and evaluation do, of weights that `mark` stands for."""
    from src.core.params import load_params
    from tests.fakes.history_store import answers, challenger

    challenger(load_params(Path("params.yaml")), mark, answers(int(right)))


def _evaluate_tiny() -> None:
    """The same with a model that is small, and real."""
    import yaml

    from scripts import evaluation_script
    from tests.fakes import tiny_model
    from utils import process

    tiny_model.write_stages(Path())
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["evaluation"].update(max_new_tokens=12, tokens_per_batch=300)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    process.run(evaluation_script.main)


def _look() -> None:
    from tests.fakes.compared_worlds import look

    look()


_WORK: Mapping[str, Callable[..., Any]] = {"deploy": _deploy, "evaluate": _evaluate, "look": _look,
                                           "evaluate_tiny": _evaluate_tiny}
