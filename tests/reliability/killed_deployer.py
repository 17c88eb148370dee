"""Deployers in processes of their own, to be killed: this module, run as a program, reads jobs, a JSON line each.

A job is carried out by a fork of an interpreter that has imported everything: {"do": what, "at": kill point or "",
"merges": whether weights are merged, or bytes stand for them, "cwd": folder, "environment": {...}, "arguments": [...],
"out": file for stdout, "log": file for stderr}. The answer is {"code": exit code, negative for a signal}. With the job
as the only argument it is done in this fresh interpreter.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from tests.fakes import weightless_assembly

sys.modules["scripts.commands.assemble"] = weightless_assembly  # before anything imports torch for the real one


def main() -> None:
    if len(sys.argv) > 1:
        _do(json.loads(sys.argv[1]))
    _import_everything()
    _say({"ready": os.getpid()})
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _do(json.loads(line))
        _say({"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])})


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _import_everything() -> None:
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.tracking  # noqa: F401

    from scripts import status_script  # noqa: F401
    from src.promotion import status  # noqa: F401
    from tests.reliability import kill_points  # noqa: F401


def _do(job: Mapping[str, Any]) -> NoReturn:
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["cwd"])
    for stream, name in enumerate((os.devnull, job["out"], job["log"])):  # stdin brings jobs, but not to this one
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), stream)
    sys.argv = [job["do"], *job["arguments"]]
    if job["merges"]:
        del sys.modules["scripts.commands.assemble"]  # the real one will be imported
    if job["at"]:
        from tests.reliability.kill_points import NAMED

        NAMED[job["at"]].arm()
    _WORK[job["do"]](*job["arguments"])
    raise AssertionError("a job ends by exiting")


def _deploy(*_flags: str) -> NoReturn:
    from scripts import deployment_script
    from utils import process

    call = deployment_script.Deployment()
    process.run(call.run, announce=call.failed)


def _evaluate(mark: str, right: str) -> NoReturn:
    """Leave results/ as training and evaluation do, of weights that `mark` stands for."""
    from src.core.params import load_params
    from tests.fakes.history_store import answers, challenger
    from utils import process

    def stage() -> int:
        challenger(load_params(Path("params.yaml")), mark, answers(int(right)))
        return 0

    process.run(stage)


def _evaluate_tiny() -> NoReturn:
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


def _look() -> NoReturn:
    from tests.fakes.seen_world import look
    from utils import process

    process.run(look)


_WORK: Mapping[str, Callable[..., NoReturn]] = {"deploy": _deploy, "evaluate": _evaluate, "look": _look,
                                                "evaluate_tiny": _evaluate_tiny}

if __name__ == "__main__":
    main()
