"""A race of real deployers on one store and one Hub: `python -m tests.reliability.races '{"root": ..., ...}'`.

Each deployer runs the whole deployment script (its weights are texts) with MLflow's and the Hub's own clients, in a
folder of its own, and may be killed at any moment and started again. A watcher looks on all the time. After each
round one run comes alone, then every one that was interrupted. Ends with a line of JSON, or with what was broken.

HF_ENDPOINT and HF_TOKEN name the Hub. All processes are forks of this one, which never speaks to a service.
"""

import gc
import importlib
import json
import math
import multiprocessing
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from sqlalchemy.orm import configure_mappers

from tests.reliability import race_deployer
from tests.reliability.race_deployer import Entrant, Killer, World
from tests.reliability.race_history import Observation, misshown, uncrowned, unsettled, violations
from tests.reliability.race_watcher import Watcher
from utils.tracking import store

ROUNDS_PER_WORLD = 5
ARRIVALS = ("together", "ascending", "descending", "random", "forced")
THRESHOLD = Decimal("0.001")
STEP = 0.01  # between scores
STEPS = 18  # of a run that promotes
KILLED, RUN_AGAIN = -9, {4, 6, 75}
PATIENCE = 300  # seconds, with a process that only looks
# What every deployer would import for itself; nothing here opens a connection.
WARM_UP = ("scripts.commands.services", "utils.tracking.deployments", "alembic.command", "git", "mako.template",
           "mlflow.store.db.utils", "mlflow.store.model_registry.sqlalchemy_store",
           "mlflow.store.tracking.sqlalchemy_store", "mlflow.tracing.otel")
_FORK = multiprocessing.get_context("fork")


class Broken(AssertionError):
    """A promise was broken, or a deployer ended as it must not."""


@dataclass
class Race:
    """All rounds on one store and one Hub; `share` of the processes are to be killed."""

    root: str
    tracking_uri: str
    deployers: int
    share: float
    seed: int

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._seconds = [1.0]  # that undisturbed runs took
        self.counts = Counter[str](killed=0, lost=0, run_again=0)
        self.results, self.killed_in = Counter[str](), Counter[str]()

    def run(self, rounds: int) -> None:
        """Race so many rounds; raises Broken."""
        self._child(store.prepare, self.tracking_uri)  # an absent sqlite file: the watcher is there first
        for first in range(1, rounds + 1, ROUNDS_PER_WORLD):
            self._world = World(Path(self.root, f"race-{first}"), f"race-{first}", self.tracking_uri)
            self._watcher = Watcher(self.tracking_uri, self._world.name, self._world.repo)
            self._entrants: list[Entrant] = []
            with self._watched():
                for number in range(first, min(first + ROUNDS_PER_WORLD, rounds + 1)):
                    self._round(ARRIVALS[number - first])
                    print(f"rounds {number}, {dict(self.counts)}, {dict(self.results)}", flush=True)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        stop = _FORK.Event()
        answer = self._begun(self._watcher.watch, stop)
        yield
        stop.set()
        history, looks = _received(answer)
        self.counts["looks"] += looks
        self._refuse(violations(history, THRESHOLD))

    def _round(self, arrivals: str) -> None:
        slots = len(self._look().slots)
        entrants = self._drawn(arrivals)
        self._entrants += entrants
        interrupted = self._raced(entrants)
        while _uploads(self._world.root):  # they end themselves when they notice that their deployer is dead
            time.sleep(0.1)
        settled = self._quiet(entrants, interrupted)
        self._refuse(misshown(settled, json.loads(Path(self.root, "hub/state.json").read_text()), self._world.repo))
        if arrivals != "forced":
            self._refuse(uncrowned(settled, [Decimal(str(entrant.score)) for entrant in self._entrants], THRESHOLD))
        self.counts["claimed"] += len(self._look().slots) - slots

    def _drawn(self, arrivals: str) -> list[Entrant]:
        """One below the champion, the others above, two nearer to each other than the threshold."""
        champion = max((entrant.score for entrant in self._entrants), default=0.1)
        above = [STEP * k for k in range(1, self.deployers)]
        gains = [*above, above[-1] + float(THRESHOLD) * 0.4]
        gains[0] *= -1 if self.deployers > 2 else 1
        self._random.shuffle(gains)
        if arrivals in ("ascending", "descending"):
            gains.sort(reverse=arrivals == "descending")
        # Long enough for most to decide before the next, better one is known; short enough to meet at the claim.
        gap = 0.0 if arrivals in ("together", "forced") else 0.35 * self._usual()
        times = [gap * (self._random.random() * 4 if arrivals == "random" else place) for place in range(len(gains))]
        first = len(self._entrants)
        return [Entrant(f"entrant-{first + place}", round(champion + gain, 6), at, arrivals == "forced")
                for place, (gain, at) in enumerate(zip(gains, times, strict=True))]

    def _usual(self) -> float:
        """Seconds that a run takes."""
        return statistics.median(self._seconds[-20:])

    def _raced(self, entrants: Sequence[Entrant]) -> list[Entrant]:
        """Run them all at once; returns those whose last process was killed, or is to be run again."""
        start, interrupted = time.time() + 0.05 * len(entrants), []
        running = [self._started(entrant, start) for entrant in entrants]
        while running:
            wait([process.sentinel for process, _ in running], 0.05)
            for process, killer in running[:]:
                if process.is_alive() and not killer.due():
                    continue
                process.kill()
                process.join()
                running.remove((process, killer))
                entrant = killer.entrant
                if self._ended(entrant, process):
                    continue
                if process.exitcode == KILLED and self._random.random() < 0.5:
                    running.append(self._started(entrant, time.time() - entrant.arrives))
                else:
                    interrupted.append(entrant)
        return interrupted

    def _started(self, entrant: Entrant, start: float) -> tuple[ForkProcess, Killer]:
        steps = self._random.randrange(STEPS) if self._random.random() < self.share else math.inf
        killer = Killer(self._world, entrant, steps, self._random.random() * 0.1 * self._usual())
        process = _FORK.Process(target=race_deployer.compete, args=(self._world, entrant, start))
        process.start()
        self.counts["started"] += 1
        return process, killer

    def _ended(self, entrant: Entrant, process: ForkProcess) -> bool:
        """Count how a process ended; whether it came to its end."""
        took = race_deployer.steps(self._world, entrant, process.pid)
        self.counts["lost"] += max(0, took.count("decide") - 1)
        if process.exitcode == KILLED:
            self.counts["killed"] += 1
            self.killed_in[took[-1] if took else "evaluation"] += 1
            return False
        ended = self._outcome(entrant, process, {0, *RUN_AGAIN})
        if ended["code"]:
            self.counts["run_again"] += 1
            print(f"  {entrant.name}: {ended['code']} {ended['reason']}", flush=True)
            return False
        self.results[ended["result"]] += 1
        self._seconds.append(ended["seconds"])
        return True

    def _quiet(self, entrants: Sequence[Entrant], interrupted: Sequence[Entrant]) -> Observation:
        """One run alone puts all in order; then each of the interrupted comes to its end; then nothing is to do."""
        first = self._random.choice(interrupted or entrants)
        for entrant in [first, *(entrant for entrant in interrupted if entrant is not first)]:
            result = self._alone(entrant if entrant in interrupted else replace(entrant, force=False))
            if entrant in interrupted:
                self.results[result] += 1
            self._refuse(unsettled(self._look()))
        self.counts["rerun"] += len(interrupted)
        before = self._look()
        champion = next(entrant for entrant in self._entrants if entrant.name == before.ledger[-1]["actor"])
        if (result := self._alone(replace(champion, force=False))) != "already":
            raise Broken(f"the champion, run again, was {result}")
        if asdict(before) | {"at": 0} != asdict(self._look()) | {"at": 0}:
            raise Broken(f"running twice changed something: {before} {self._look()}")
        if code := self._child(race_deployer.status, self._world, champion):
            raise Broken(f"status_script.py exits with {code}; {self._log(champion)}")
        return before

    def _alone(self, entrant: Entrant) -> str:
        process = _FORK.Process(target=race_deployer.compete, args=(self._world, entrant, 0.0))
        process.start()
        process.join()
        return str(self._outcome(entrant, process, {0})["result"])

    def _outcome(self, entrant: Entrant, process: ForkProcess, codes: set[int]) -> dict[str, Any]:
        """How a process ended that was not killed."""
        file = self._world.root / entrant.name / "outcome.json"
        ended: dict[str, Any] = {} if process.exitcode else json.loads(file.read_text())
        if ended.get("code") not in codes:
            raise Broken(f"{entrant} ended with {process.exitcode}, {ended}; {self._log(entrant)}")
        return ended

    def _refuse(self, found: Iterable[str]) -> None:
        if problems := list(found):
            raise Broken("\n".join(problems[:20]))

    def _log(self, entrant: Entrant) -> str:
        return f"see {self._world.root / entrant.name}/log"

    def _look(self) -> Observation:
        found: Observation = self._child(self._watcher.look)
        return found

    def _child(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns in a process of its own."""
        return _received(self._begun(function, *arguments))

    def _begun(self, function: Callable[..., Any], *arguments: Any) -> Connection:
        """Where a function's answer will come from."""
        ours, theirs = _FORK.Pipe(duplex=False)
        _FORK.Process(target=lambda: theirs.send(function(*arguments)), daemon=True).start()
        theirs.close()
        return ours


def _received(answer: Connection) -> Any:
    if not answer.poll(PATIENCE):
        raise Broken("a process that looks hangs")
    try:
        return answer.recv()
    except EOFError:
        raise Broken("a process that looks failed, see above") from None


def _uploads(root: Path) -> bool:
    """Whether a process still uploads for a deployer in a folder below root."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            uploads = b"utils.hub.upload" in (process / "cmdline").read_bytes()
            if uploads and (process / "cwd").readlink().is_relative_to(root):
                return True
    return False


def main() -> None:
    asked = json.loads(sys.argv[1])
    rounds, began = asked.pop("rounds"), time.monotonic()
    for module in WARM_UP:
        importlib.import_module(module)
    configure_mappers()
    gc.freeze()
    race = Race(**asked)
    race.run(rounds)
    print(json.dumps({"deployers": race.deployers, "rounds": rounds, **race.counts, "results": race.results,
                      "killed_in": dict(race.killed_in.most_common()), "seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
