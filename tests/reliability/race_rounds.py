"""The rounds of a race: deployers that start together, a killer, and what must hold once it is quiet again.

Processes are forked from one that imported everything and never speaks to a service; see tests/reliability/races.py.
"""

import json
import multiprocessing
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from tests.fakes.loopback_hub import WRITE
from tests.reliability import race_deployer
from tests.reliability.race_deployer import Entrant, Killer, World
from tests.reliability.race_history import Observation, misshown, uncrowned, unsettled, violations
from tests.reliability.race_watcher import Watcher, recorded
from utils.tracking import store

ROUNDS_PER_WORLD = 5
ARRIVALS = ("together", "ascending", "descending", "random", "forced")
THRESHOLD = Decimal("0.001")
STEP = 0.01  # between scores
STEPS = 18  # of a run that promotes
KILLED, RUN_AGAIN = -9, {4, 6, 75}
_FORK = multiprocessing.get_context("fork")


class Broken(AssertionError):
    """A promise was broken, or a deployer ended as it must not."""


@dataclass
class Round:
    """What one round showed."""

    number: int
    arrivals: str
    started: int = 0
    killed: int = 0
    claimed: int = 0
    lost: int = 0
    run_again: int = 0
    rerun: int = 0
    seconds: float = 0.0
    results: Counter[str] = field(default_factory=Counter)
    killed_in: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        ended = ", ".join(f"{count} {result}" for result, count in sorted(self.results.items()))
        return (f"round {self.number:2d} {self.arrivals:10s} {self.started:2d} started, {self.killed} killed, "
                f"{self.claimed} slots claimed, {self.lost} claims lost, {self.run_again} to run again; "
                f"in the end {ended}; {self.seconds:.1f} s")


@dataclass
class Race:
    """All rounds on one store and one Hub; `share` of the processes are to be killed."""

    root: Path
    tracking_uri: str
    endpoint: str
    deployers: int
    share: float
    seed: int
    looks: int = 0
    rounds: list[Round] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._seconds = [1.0]  # that undisturbed runs took

    def run(self, rounds: int) -> None:
        """Race so many rounds; raises Broken."""
        self._child(store.prepare, self.tracking_uri)  # an absent sqlite file: the watcher is there first
        for first in range(1, rounds + 1, ROUNDS_PER_WORLD):
            self._race_in(World(self.root / f"race-{first}", f"race-{first}", self.tracking_uri),
                          range(first, min(first + ROUNDS_PER_WORLD, rounds + 1)))

    def _race_in(self, world: World, numbers: range) -> None:
        self._world, self._entrants, seen = world, list[Entrant](), self.root / f"{world.name}.jsonl"
        with self._watched(seen):
            for number in numbers:
                self._round(Round(number, ARRIVALS[(number - 1) % ROUNDS_PER_WORLD]))
        history, looks = recorded(seen)
        self.looks += looks
        self._refuse(violations(history, THRESHOLD))

    @contextmanager
    def _watched(self, file: Path) -> Iterator[None]:
        stop = file.with_suffix(".stop")
        process = _FORK.Process(target=_watch, args=(self._watcher(), file, stop))
        process.start()
        try:
            yield
        finally:
            stop.touch()
            process.join(300)
            process.kill()
        if process.exitcode:
            raise Broken(f"the watcher ended with {process.exitcode}")

    def _round(self, now: Round) -> None:
        began, slots = time.monotonic(), len(self._look().slots)
        entrants = self._drawn(now.arrivals)
        self._entrants += entrants
        interrupted = self._raced(entrants, now)
        while _uploads(self._world.root):  # they end themselves when they notice that their deployer is dead
            time.sleep(0.1)
        self._quiet(entrants, interrupted, now)
        now.rerun, now.claimed = len(interrupted), len(self._look().slots) - slots
        now.seconds = time.monotonic() - began
        self.rounds.append(now)
        print(now.line(), flush=True)

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
        gap = 0.0 if arrivals in ("together", "forced") else 0.35 * statistics.median(self._seconds[-20:])
        times = [gap * (self._random.random() * 4 if arrivals == "random" else place) for place in range(len(gains))]
        first = len(self._entrants)
        return [Entrant(f"entrant-{first + place}", round(champion + gain, 6), at, arrivals == "forced")
                for place, (gain, at) in enumerate(zip(gains, times, strict=True))]

    def _raced(self, entrants: Sequence[Entrant], now: Round) -> list[Entrant]:
        """Run them all at once; returns those whose last process was killed, or is to be run again."""
        start, interrupted = time.time() + 0.05 * len(entrants), []
        running = [self._started(entrant, start, now) for entrant in entrants]
        while running:
            wait([process.sentinel for process, _ in running], 0.05)
            for process, killer in running[:]:
                if process.is_alive() and not killer.due():
                    continue
                process.kill()
                process.join()
                running.remove((process, killer))
                entrant = killer.entrant
                if self._ended(entrant, process, now):
                    continue
                if process.exitcode == KILLED and self._random.random() < 0.5:
                    running.append(self._started(entrant, time.time() - entrant.arrives, now))
                else:
                    interrupted.append(entrant)
        return interrupted

    def _started(self, entrant: Entrant, start: float, now: Round) -> tuple[ForkProcess, Killer]:
        steps = self._random.randrange(STEPS) if self._random.random() < self.share else None
        delay = self._random.random() * 0.1 * statistics.median(self._seconds[-20:])
        killer = Killer(self._world, entrant, steps, delay)
        process = _FORK.Process(target=race_deployer.compete, args=(self._world, entrant, start))
        process.start()
        now.started += 1
        return process, killer

    def _ended(self, entrant: Entrant, process: ForkProcess, now: Round) -> bool:
        """Count how a process ended; whether it came to its end."""
        pid = process.pid or 0
        took = race_deployer.steps(self._world, entrant, pid)
        now.lost += max(0, took.count("decide") - 1)
        if process.exitcode == KILLED:
            now.killed += 1
            now.killed_in[took[-1] if took else "evaluation"] += 1
            return False
        ended = race_deployer.outcome(self._world, entrant, pid)
        if ended is None or ended["code"] not in (0, *RUN_AGAIN):
            raise Broken(f"{entrant} ended with {process.exitcode}, {ended}; {self._log(entrant)}")
        if ended["code"]:
            now.run_again += 1
            print(f"  {entrant.name}: {ended['code']} {ended['reason']}", flush=True)
            return False
        now.results[ended["result"]] += 1
        self._seconds.append(ended["seconds"])
        return True

    def _quiet(self, entrants: Sequence[Entrant], interrupted: Sequence[Entrant], now: Round) -> None:
        """One run alone puts all in order; then each of the interrupted comes to its end; then nothing is to do."""
        first = self._random.choice(list(interrupted) or list(entrants))
        for entrant in [first, *(entrant for entrant in interrupted if entrant is not first)]:
            result = self._alone(entrant if entrant in interrupted else entrant.unforced())
            if entrant in interrupted:
                now.results[result] += 1
            self._refuse(unsettled(self._look()))
        before = self._look()
        champion = self._champion(before)
        if (result := self._alone(champion.unforced())) != "already":
            raise Broken(f"the champion, run again, was {result}")
        if asdict(before) | {"at": 0} != asdict(self._look()) | {"at": 0}:
            raise Broken(f"running twice changed something: {before} {self._look()}")
        if code := self._child(race_deployer.status, self._world, champion):
            raise Broken(f"status_script.py exits with {code}; {self._log(champion)}")
        self._refuse(misshown(before, json.loads((self.root / "hub/state.json").read_text()), self._world.repo))
        if now.arrivals != "forced":
            self._refuse(uncrowned(before, [Decimal(str(entrant.score)) for entrant in self._entrants], THRESHOLD))

    def _alone(self, entrant: Entrant) -> str:
        process = _FORK.Process(target=race_deployer.compete, args=(self._world, entrant, 0.0))
        process.start()
        process.join()
        ended = race_deployer.outcome(self._world, entrant, process.pid or 0)
        if ended is None or ended["code"]:
            raise Broken(f"alone, {entrant} ended with {ended}; {self._log(entrant)}")
        return str(ended["result"])

    def _champion(self, seen: Observation) -> Entrant:
        """Who stands at the ledger's head."""
        digest = seen.ledger[-1]["model_digest"]
        return next(entrant for entrant in self._entrants
                    if race_deployer.model_digest(self._world, entrant) == digest)

    def _refuse(self, found: Iterable[str]) -> None:
        if problems := list(found):
            raise Broken("\n".join(problems[:20]))

    def _log(self, entrant: Entrant) -> str:
        return f"see {self._world.root / entrant.name}/log"

    def _watcher(self) -> tuple[str, ...]:
        return self.tracking_uri, self._world.name, self._world.repo, self.endpoint, WRITE

    def _look(self) -> Observation:
        found: Observation = self._child(_look, self._watcher())
        return found

    def _child(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns in a process of its own."""
        ours, theirs = _FORK.Pipe()
        process = _FORK.Process(target=race_deployer.answer, args=(theirs, function, arguments))
        process.start()
        theirs.close()
        try:
            return ours.recv()
        except EOFError:
            raise Broken(f"{function.__name__} failed, see above") from None
        finally:
            process.join()


def _uploads(root: Path) -> bool:
    """Whether a process still uploads for a deployer in a folder below root."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            uploads = b"utils.hub.upload" in (process / "cmdline").read_bytes()
            if uploads and (process / "cwd").readlink().is_relative_to(root):
                return True
    return False


def _watch(watcher: tuple[str, ...], file: Path, stop: Path) -> None:
    Watcher(*watcher).watch(file, stop)


def _look(watcher: tuple[str, ...]) -> Observation:
    return Watcher(*watcher).look()
