"""One process of a race: a challenger that is evaluated and brought before the real deployment script.

Everything here runs in a process that was forked for it and may be killed at any moment. It lives in a folder of its
own, with its own params.yaml, results/ and journal, as a deployer on a machine of its own does.
"""

import json
import math
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from scripts import status_script
from src.core.params import load_params
from tests.fakes import weightless
from tests.fakes.history_store import BY_BLEU1, challenger, scored_answers
from tests.fakes.loopback.publishing import release_folder
from tests.fakes.promoted import PUSHING, SOURCE
from tests.fakes.promoted import run as run_script
from utils import json_utils


@dataclass(frozen=True)
class World:
    """A registered model with an experiment and a Hub repository of its own; folders of deployers below `root`."""

    root: Path
    name: str
    tracking_uri: str

    @property
    def repo(self) -> str:
        return f"acme/{self.name}"


@dataclass(frozen=True)
class Entrant:
    """Who takes part in a round, and how many seconds after its start."""

    name: str
    score: float
    arrives: float
    force: bool


class Killer:
    """When to send SIGKILL: `delay` seconds after so many more steps are in the journal."""

    def __init__(self, world: World, entrant: Entrant, steps: float, delay: float) -> None:
        self.entrant, self._world, self._delay, self._moment = entrant, world, delay, math.inf
        self._enough = _lines(world, entrant) + steps

    def due(self) -> bool:
        if self._moment == math.inf and _lines(self._world, self.entrant) >= self._enough:
            self._moment = time.monotonic() + self._delay
        return time.monotonic() >= self._moment


def compete(world: World, entrant: Entrant, start: float) -> None:
    """Be evaluated (once) and deployed; how it ended is in outcome.json, unless it was killed."""
    _enter(world, entrant)
    time.sleep(max(0.0, start + entrant.arrives - time.time()))
    began = time.time()
    if not Path("evaluated").exists():
        _evaluate(entrant)
    flags = ["--force-deploy", "--reason", "race"] if entrant.force else []
    code = weightless.call("--config", "params.yaml", *flags)
    last = re.findall(r"^PROMOTE result=(\w+) code=\d+ reason=(.*)$", Path("log").read_text(), re.MULTILINE)[-1]
    json_utils.write_object(Path("outcome.json"), {"code": code, "result": last[0], "reason": last[1],
                                                   "seconds": time.time() - began})


def steps(world: World, entrant: Entrant, pid: int | None) -> list[str]:
    """The steps that a process took, from its journal."""
    lines = [json.loads(line) for file in _journals(world, entrant) for line in file.read_text().splitlines()]
    return [line["step"] for line in lines if line["pid"] == pid]


def status(world: World, entrant: Entrant) -> int:
    """What status_script.py --json exits with, run where this entrant last was; its words are in the folder's log."""
    _enter(world, entrant)
    return run_script(status_script, "--json", "--config", "params.yaml")


def _journals(world: World, entrant: Entrant) -> list[Path]:
    return sorted((world.root / entrant.name).glob(".promotion/*/journal.jsonl"))


def _lines(world: World, entrant: Entrant) -> int:
    """How many steps its processes have begun."""
    return sum(file.read_bytes().count(b"\n") for file in _journals(world, entrant))


def _enter(world: World, entrant: Entrant) -> None:
    folder = world.root / entrant.name
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    os.environ["GITHUB_ACTOR"] = entrant.name  # by which the ledger knows it
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    values = yaml.safe_load(SOURCE.read_bytes())
    values["mlflow"] |= {"tracking_uri": world.tracking_uri, "experiment_name": world.name}
    values["deployment"] |= {"model_registry_name": world.name, "weighted_scoring": BY_BLEU1,
                             "huggingface": PUSHING | {"model_id": world.repo, "deadline_seconds": 120}}
    Path("params.yaml").write_text(yaml.safe_dump(values))


def _evaluate(entrant: Entrant) -> None:
    challenger(load_params(Path("params.yaml")), entrant.name, scored_answers(entrant.score))
    release = Path("results/release")
    if not release.exists():
        half = release.with_name(f"release.{os.getpid()}")
        release_folder(half, entrant.name.encode()).rename(release)
    Path("evaluated").touch()
