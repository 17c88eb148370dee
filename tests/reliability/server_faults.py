"""One row of the server's fault matrix: the MLflow server fails a deployment at one call, and one more run follows.

Each command is a fork of one process that imported MLflow; its client, the proxy and the server are real.
"""

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from src.core.params import load_params
from tests.fakes.history_store import answers, challenger, write_params
from tests.fakes.mlflow_proxy import Fault, Kind, MlflowProxy, SqliteServer
from tests.fakes.promoted import NAME, SOURCE
from utils.tracking.ledger import MlflowLedger
from utils.tracking.tag import DUPLICATE, KEY

SECONDS = 60  # what the issue allows a run whose server fails
EVALUATIONS = {"first": ("one", 10), "second": ("two", 20)}  # mark of the weights, and how many of 40 answers are right
QUICK = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
HEADER = ("promotion", "call", *Kind)

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.fakes.weightless", "scripts.commands.deploy", "scripts.status_script",
                               "scripts.commands.services", "mlflow.store.tracking.rest_store"])


@dataclass(frozen=True)
class Ended:
    """How a command ended; seconds are of wall clock, `after` counts from the fault, 0 where there was none."""

    code: int
    seconds: float
    after: float
    out: str
    err: str


@dataclass(frozen=True)
class World:
    """What stands on the server, without ids and times; versions gives each one's key, or what it duplicates."""

    slots: tuple[tuple[str, int, str], ...]
    aliases: Mapping[str, int]
    stages: Mapping[int, str]
    versions: Mapping[int, str]


@dataclass(frozen=True)
class Row:
    """What came of one fault; problems is empty where all is as it must be."""

    promotion: str
    fault: Fault
    ended: Ended
    left: str
    rerun: str
    problems: Sequence[str]

    @property
    def call(self) -> tuple[str, str]:
        return self.promotion, f"`{self.fault.endpoint}` {self.fault.occurrence}"

    def cell(self) -> str:
        """In a line: exit code, seconds, what was left, the next run's result."""
        words = f"{self.ended.code}, {self.ended.seconds:.1f} s, {self.left}, {self.rerun}"
        return words if not self.problems else f"{words}, WRONG: {'; '.join(self.problems)}"


class Place:
    """A folder and a server whose database is put back to a prior state before each row."""

    def __init__(self, root: Path, server: SqliteServer) -> None:
        self.folder, self._root, self._database, self._server = root / "shop", root, server, server.url
        self._worlds: dict[str, tuple[World, World]] = {}

    def prepare(self) -> None:
        """Set the prior states of a first and a second promotion aside, and what a clean run makes of each."""
        self.folder.mkdir()
        os.chdir(self.folder)
        write_params(self.folder, SOURCE, resamples=100)
        os.environ["MLFLOW_TRACKING_URI"] = self._server
        params = load_params(Path("params.yaml"))
        for name, (mark, right) in EVALUATIONS.items():
            challenger(params, mark, answers(right))
            self._set_aside(name)
            before = self.world()
            clean = self.command({})
            assert clean.code == 0, clean.err
            self._worlds[name] = before, self.world()

    def calls(self, promotion: str) -> list[Fault]:
        """The calls of a clean run, as faults of no particular kind."""
        self.put_back(promotion)
        with MlflowProxy(self._server) as proxy:
            assert self.command({"MLFLOW_TRACKING_URI": proxy.url}).code == 0
        seen: dict[str, int] = {}
        found = []
        for call in proxy.calls:
            seen[call.endpoint] = seen.get(call.endpoint, 0) + 1
            found.append(Fault(Kind.REFUSED, call.endpoint, seen[call.endpoint]))
        return found

    def row(self, promotion: str, fault: Fault, settings: Mapping[str, str] = QUICK) -> Row:
        """Let the server fail once, look at what is left, and run again without a fault."""
        self.put_back(promotion)
        before, clean = self._worlds[promotion]
        with MlflowProxy(self._server, fault) as proxy:
            ended = self.command({**settings, "MLFLOW_TRACKING_URI": proxy.url}, proxy)
        left = self.world()
        problems = [] if proxy.struck_at else ["the call never came"]
        problems += _half_visible(before, left) + _ill_ended(ended, promoted=left.slots != before.slots, fault=fault)
        again = self.command({})
        problems += [] if again.code == 0 else [f"the next run ended with {again.code}: {again.err[-300:]}"]
        problems += _unlike(self.world(), clean)
        status = self.command({}, status=True)
        problems += [] if status.code == 0 else [f"status sees {json.loads(status.out)['drift']}"]
        words = json.loads((self.folder / "results/deployment/deployment_info.json").read_text())["result"]
        return Row(promotion, fault, ended, _told(before, left) if _unlike(left, clean) else "all", words, problems)

    def put_back(self, promotion: str) -> None:
        """The state before a promotion."""
        shutil.rmtree(self.folder)
        shutil.copytree(self._root / promotion, self.folder)
        os.chdir(self.folder)
        self._database.put_back(self._root / f"{promotion}.db")

    def world(self) -> World:
        """What stands now."""
        client = MlflowClient(self._server, self._server)
        slots = MlflowLedger(client, NAME, "").view().slots
        versions = client.search_model_versions(f"name = '{NAME}'")
        aliases = client.get_registered_model(NAME).aliases if versions else {}
        return World(
            slots=tuple((slot.kind, slot.version, slot.key) for slot in slots),
            aliases={name: int(version) for name, version in aliases.items()},
            stages={int(v.version): v.current_stage for v in versions},
            versions={int(v.version): f"copy of {v.tags[DUPLICATE]}" if DUPLICATE in v.tags else v.tags[KEY]
                      for v in versions})

    def command(self, settings: Mapping[str, str], proxy: MlflowProxy | None = None, *, status: bool = False) -> Ended:
        """Run the deployment, or the status command, in the folder; what it says is kept beside it."""
        out, err = self._root / "out", self._root / "err"
        environment = {"MLFLOW_TRACKING_URI": self._server, "GITHUB_ACTOR": "tester", **settings}
        process = _forks.Process(target=_command, args=(str(self.folder), environment, str(out), str(err), status))
        begun = time.monotonic()
        process.start()
        process.join(4 * SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        ended = time.monotonic()
        after = ended - proxy.struck_at if proxy and proxy.struck_at else 0.0
        return Ended(int(process.exitcode or 0), ended - begun, after, out.read_text(), err.read_text())

    def _set_aside(self, name: str) -> None:
        shutil.copytree(self.folder, self._root / name)
        self._database.set_aside(self._root / f"{name}.db")


def _command(folder: str, environment: Mapping[str, str], out: str, err: str, status: bool) -> None:
    from scripts import status_script
    from tests.fakes import weightless
    from utils import process

    os.chdir(folder)
    os.environ.update(environment)
    for name, descriptor in ((out, 1), (err, 2)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    if not status:
        sys.exit(weightless.call())
    sys.argv = ["status_script.py", "--json"]
    process.run(status_script.main)


def pivot(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each call, with a cell for each kind of fault."""
    cells = {(row.call, row.fault.kind): row.cell() for row in rows}
    return [[*call, *(cells.get((call, kind), "") for kind in Kind)] for call in dict.fromkeys(r.call for r in rows)]


def _half_visible(before: World, left: World) -> list[str]:
    slots = left.slots[len(before.slots):]
    problems = []
    if left.slots[: len(before.slots)] != before.slots or len(slots) > 1:
        problems.append(f"slots {left.slots}")
    versions = {version for _, version, _ in left.slots}
    shown = {*left.aliases.values(), *(v for v, stage in left.stages.items() if stage == "Production")}
    if not shown <= versions:
        problems.append(f"shown without a slot: {shown - versions}")
    if not slots and (left.aliases, _production(left)) != (before.aliases, _production(before)):
        problems.append(f"aliases {left.aliases}, stages {left.stages} without a slot")
    return problems


def _ill_ended(ended: Ended, *, promoted: bool, fault: Fault) -> list[str]:
    lines = ended.err.strip().splitlines()
    errors = [line for line in lines if line.startswith("ERROR")]
    problems = [f"took {ended.seconds:.0f} s"] if ended.seconds >= SECONDS else []
    if fault.kind is Kind.LOST and ended.code == 0:
        return problems
    at_claim = fault.endpoint == "POST runs/log-parameter"  # where the reply is all that tells
    expected = {75} if promoted else {4, 75} if at_claim else {4}
    if ended.code not in expected:
        problems.append(f"exit {ended.code}, not {sorted(expected)}")
    if "Traceback" in ended.err or len(errors) != 1 or not lines[-1].startswith("PROMOTE result="):
        problems.append(f"said {ended.err[-400:]!r}")
    if lines and f"code={ended.code} " not in lines[-1]:
        problems.append(f"last line {lines[-1]!r}")
    return problems


def _unlike(found: World, clean: World) -> list[str]:
    problems = [f"{name}: {getattr(found, name)}, not {getattr(clean, name)}" for name in ("slots", "aliases")
                if getattr(found, name) != getattr(clean, name)]
    if _production(found) != _production(clean):
        problems.append(f"stages {found.stages}")
    if found.versions != clean.versions:
        problems.append(f"versions {found.versions}")
    return problems


def _production(world: World) -> list[int]:
    return [version for version, stage in world.stages.items() if stage == "Production"]


def _told(before: World, left: World) -> str:
    new = {version for version in left.versions if version not in before.versions}
    parts = [f"version {', '.join(map(str, sorted(new)))}"] if new else []
    parts += ["slot"] if left.slots != before.slots else []
    parts += [f"alias {name}" for name in sorted(left.aliases) if left.aliases[name] != before.aliases.get(name)]
    parts += ["stage"] if _production(left) != _production(before) else []
    return ", ".join(parts) or "nothing"
