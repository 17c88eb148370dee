"""One row of the server's fault matrix: the MLflow server fails a deployment at one call, and one more run follows.

Its client, the proxy and the server are real. A world is what tests.fakes.compared_worlds sees in MLflow.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.compared_worlds import differences
from tests.fakes.history_store import write_params
from tests.fakes.mlflow_proxy import Fault, Kind, MlflowProxy, SqliteServer
from tests.fakes.promoted import SOURCE
from tests.reliability import jobs

SECONDS = 60  # what the issue allows a run whose server fails
EVALUATIONS = {"first": ("one", "10"), "second": ("two", "20")}  # mark of the weights, right answers of 40
QUICK = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
HEADER = ("promotion", "call", *Kind)
World = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """What came of one fault; problems is empty where all is as it must be."""

    promotion: str
    fault: Fault
    code: int
    seconds: float
    after: float  # seconds from the fault to the end
    left: str
    rerun: str
    problems: Sequence[str]

    @property
    def call(self) -> tuple[str, str]:
        return self.promotion, f"`{self.fault.endpoint}` {self.fault.occurrence}"

    def cell(self) -> str:
        """In a line: exit code, seconds, what was left, the next run's result."""
        words = f"{self.code}, {self.seconds:.1f} s, {self.left}, {self.rerun}"
        return words if not self.problems else f"{words}, WRONG: {'; '.join(self.problems)}"


class Place:
    """A folder and a server whose database is put back to a prior state before each row.

    The states are those of a first and a second promotion, each with what it sees before and what a clean run makes.
    """

    def __init__(self, root: Path, server: SqliteServer, environment: Mapping[str, str]) -> None:
        self.folder, self._root, self._server = root / "shop", root, server
        self._environment = {**environment, "MLFLOW_TRACKING_URI": server.url}
        self._worlds: dict[str, tuple[World, World]] = {}
        self.folder.mkdir()
        write_params(self.folder, SOURCE)
        for name, evaluation in EVALUATIONS.items():
            self._done("evaluate", *evaluation)
            shutil.copytree(self.folder, root / name)
            server.set_aside(root / f"{name}.db")
            before = self.world()
            self._done("deploy")
            self._worlds[name] = before, self.world()
            assert self._worlds[name][1]["drift"] == []

    def calls(self, promotion: str) -> list[Fault]:
        """The calls of a clean run, as faults of no particular kind."""
        self._put_back(promotion)
        with MlflowProxy(self._server.url) as proxy:
            self._done("deploy", MLFLOW_TRACKING_URI=proxy.url)
        seen = Counter[str]()
        found = []
        for call in proxy.calls:
            seen[call.endpoint] += 1
            found.append(Fault(Kind.REFUSED, call.endpoint, seen[call.endpoint]))
        return found

    def row(self, promotion: str, fault: Fault, settings: Mapping[str, str] = QUICK) -> Row:
        """Let the server fail once, look at what is left, and run again without a fault."""
        self._put_back(promotion)
        before, clean = self._worlds[promotion]
        with MlflowProxy(self._server.url, fault) as proxy:
            begun = time.monotonic()
            ended = self._do("deploy", **settings, MLFLOW_TRACKING_URI=proxy.url)
            over = time.monotonic()
        left = self.world()
        problems = [] if proxy.struck_at else ["the call never came"]
        problems += [f"took {over - begun:.0f} s"] if over - begun >= SECONDS else []
        problems += _half_visible(before, left) + _ill_ended(ended, promoted=left["slots"] != before["slots"], at=fault)
        again = self._do("deploy")
        problems += [] if again.code == 0 else [f"the next run ended with {again.code}: {again.err[-300:]}"]
        found = self.world()
        problems += differences(_standing(found), _standing(clean))
        there = "all" if _standing(left) == _standing(clean) else _told(before, left)
        return Row(promotion, fault, ended.code, over - begun, over - (proxy.struck_at or over), there,
                   found["info"]["result"], problems)

    def world(self) -> World:
        """What stands now."""
        found: World = json.loads(self._done("look"))
        return found

    def _put_back(self, promotion: str) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self._root / promotion, self.folder)
        self._server.put_back(self._root / f"{promotion}.db")

    def _done(self, what: str, *arguments: str, **settings: str) -> str:
        """What a job says that ends well."""
        ended = self._do(what, *arguments, **settings)
        assert ended.code == 0, ended.err[-3000:]
        return ended.out

    def _do(self, what: str, *arguments: str, **settings: str) -> jobs.Ended:
        return jobs.run(what, *arguments, folder=self.folder, environment={**self._environment, **settings})


def pivot(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each call, with a cell for each kind of fault."""
    cells = {(row.call, row.fault.kind): row.cell() for row in rows}
    return [[*call, *(cells.get((call, kind), "") for kind in Kind)] for call in dict.fromkeys(r.call for r in rows)]


def _half_visible(before: World, left: World) -> list[str]:
    slots, there = left["slots"], len(before["slots"])
    problems = []
    if slots[:there] != before["slots"] or len(slots) > there + 1:
        problems.append(f"slots {slots}")
    if shown := {*left["aliases"].values(), *_production(left)} - {slot["version"] for slot in slots}:
        problems.append(f"shown without a slot: {shown}")
    if len(slots) == there and (left["aliases"], _production(left)) != (before["aliases"], _production(before)):
        problems.append(f"aliases {left['aliases']}, Production {_production(left)} without a slot")
    return problems


def _ill_ended(ended: jobs.Ended, *, promoted: bool, at: Fault) -> list[str]:
    if at.kind is Kind.LOST and ended.code == 0:
        return []
    lines = ended.err.strip().splitlines()
    at_claim = at.endpoint == "POST runs/log-parameter"  # where the reply is all that tells
    expected = {75} if promoted else {4, 75} if at_claim else {4}
    problems = [] if ended.code in expected else [f"exit {ended.code}, not {sorted(expected)}"]
    if "Traceback" in ended.err or sum(line.startswith("ERROR") for line in lines) != 1:
        problems.append(f"said {ended.err[-400:]!r}")
    if not lines or not lines[-1].startswith("PROMOTE result=") or f"code={ended.code} " not in lines[-1]:
        problems.append(f"last line {lines[-1:]}")
    return problems


def _standing(world: World) -> dict[str, Any]:
    """What must be equal in the end."""
    return {name: world[name] for name in ("slots", "aliases", "versions", "drift")}


def _production(world: World) -> list[int]:
    return [version["version"] for version in world["versions"] if version["stage"] == "Production"]


def _told(before: World, left: World) -> str:
    new = left["versions"][len(before["versions"]):]
    parts = [f"version {', '.join(str(version['version']) for version in new)}"] if new else []
    parts += ["slot"] if left["slots"] != before["slots"] else []
    parts += [f"alias {name}" for name, version in sorted(left["aliases"].items())
              if version != before["aliases"].get(name)]
    parts += ["stage"] if _production(left) != _production(before) else []
    return ", ".join(parts) or "nothing"
