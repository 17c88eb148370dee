"""The protocol as a finite model: runs that take turns request by request, and crash, in every possible order.

A run of a command has places between two requests, where the model can stop it. A step of src.promotion that makes
several requests is replayed up to the next one, with the answers that it had.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from struct import Struct
from typing import Any

from src.core.errors import PipelineError
from src.ledger.slots import LedgerView, Slot
from src.model_selection import Verdict
from src.promotion.protocol import Progress, Step, advance, append, reconcile
from src.promotion.rollback import rollback
from tests.fakes.factories import POLICY
from tests.fakes.promotion_fakes import (
    Challenger,
    Effect,
    Violation,
    World,
    check_always,
    check_settled,
    origin,
    ports_of,
)

_ABSENT = -1  # the place of a run before its evaluation ended
FRESH = 0  # the place where a run starts
_NOTHING = LedgerView(())
_READS_ANEW = {Step.PREFLIGHT, Step.RECONCILE, Step.SETTLE, Step.DECIDE}


@dataclass(frozen=True)
class Rollback:
    """Somebody who makes a version the champion again."""

    to: int
    name: str = "rollback"


Actor = Challenger | Rollback


class Pause(BaseException):
    """The turn is over."""


class Turn:
    """An Outside that replays answers, then carries out one more request, then pauses.

    Where splits are given, a turn goes on to the end of a step, or to a request that they name.
    """

    def __init__(self, splits: frozenset[str] | None) -> None:
        self._splits = splits
        self.world = World()
        self.answers: list[Any] = []
        self._replayed = 0
        self._moved = False

    def begin(self, world: World, answers: Sequence[Any]) -> None:
        self.world, self.answers, self._replayed, self._moved = world, list(answers), 0, False

    def next_step(self) -> None:
        self.answers, self._replayed = [], 0

    def call(self, name: str, effect: Effect) -> Any:
        if self._replayed < len(self.answers):
            self._replayed += 1
            return self.answers[self._replayed - 1]
        if self._moved and (not self.answers or self._splits is None or name in self._splits):
            raise Pause
        self._moved = True
        self.world, answer = effect(self.world)
        self.answers.append(answer)
        self._replayed += 1
        return answer


class PromotionRun:
    """A challenger's run of src.promotion.

    Its places are numbered as they are found; `ended` are those where it is over, with what it said.
    """

    def __init__(self, challenger: Challenger, known: tuple[Challenger, ...], splits: frozenset[str] | None) -> None:
        self.ended: dict[int, Verdict] = {}
        self._turn = Turn(splits)
        self._ports = ports_of(challenger, known, self._turn)
        self._places: list[tuple[Progress, tuple[Any, ...]]] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._number(Progress(), ())

    def move(self, world: World, place: int) -> tuple[World, int]:
        """The world and the place after the next request; raises Violation for a run that gets stuck."""
        now, answers = self._places[place]
        self._turn.begin(world, answers)
        try:
            while now.step is not Step.DONE:
                now = _essence(advance(now, self._ports))
                self._turn.next_step()
        except Pause:
            return self._turn.world, self._number(now, tuple(self._turn.answers))
        except PipelineError as error:
            raise Violation(f"stuck at {now.step}: {error}") from error
        return self._turn.world, self._number(now, ())

    def where(self, place: int) -> str:
        """A place in words: the step, and how many of its requests are answered."""
        now, answers = self._places[place]
        return f"{now.step}+{len(answers)}"

    def _number(self, now: Progress, answers: tuple[Any, ...]) -> int:
        if now.step is Step.DONE:
            now = Progress(step=Step.DONE, decision=now.decision)
        name = (now.step, now.view.head_sha256, now.decision, now.version, now.release, now.lacking, answers)
        if name not in self._numbers:
            self._numbers[name] = len(self._places)
            self._places.append((now, answers))
            if now.step is Step.DONE:
                self.ended[self._numbers[name]] = now.decided().verdict
        return self._numbers[name]


def _essence(now: Progress) -> Progress:
    """Without what no later step looks at, and without the counters that only ever end a run early."""
    return replace(now, attempts=0, rounds=0, view=_NOTHING if now.step in _READS_ANEW else now.view)


class Settling(BaseException):
    """All that a run still does follows from the ledger."""


class RollbackRun:
    """A rollback's run of the protocol: the claim, then rounds of settling that each begin anew."""

    def __init__(self, asked: Rollback) -> None:
        self.ended: dict[int, Verdict] = {}
        self._asked = asked
        self._turn = Turn(None)
        self._services = ports_of(Challenger("nobody", 0.0), (), self._turn)
        self._places: list[tuple[bool, tuple[Any, ...]]] = []  # whether it settles, and the answers since
        self._numbers: dict[tuple[bool, tuple[Any, ...]], int] = {}
        self._number(False, ())

    def move(self, world: World, place: int) -> tuple[World, int]:
        settles, answers = self._places[place]
        self._turn.begin(world, answers)
        while True:
            try:
                self._go_on(settles=settles)
            except Settling:
                settles = True
                self._turn.next_step()
                continue
            except Pause:
                return self._turn.world, self._number(settles, tuple(self._turn.answers))
            except PipelineError as error:
                raise Violation(f"rollback stuck: {error}") from error
            done = self._number(True, ("done",))
            self.ended[done] = Verdict.PROMOTE
            return self._turn.world, done

    def where(self, place: int) -> str:
        settles, answers = self._places[place]
        return f"{'settle' if settles else 'append'}+{len(answers)}"

    def _go_on(self, *, settles: bool) -> None:
        if settles:
            started = iter([False])
            reconcile(self._services, lambda step: self._cut(step, again=next(started, True)), Step.SETTLE)
        else:
            append(self._services, lambda step: self._cut(step, again=True), self._slot)

    def _cut(self, step: Step, *, again: bool) -> None:
        if step is Step.SETTLE and again:
            raise Settling

    def _slot(self, view: LedgerView) -> Slot | None:
        return rollback(view, origin("somebody"), to=self._asked.to, block=None)

    def _number(self, settles: bool, answers: tuple[Any, ...]) -> int:
        name = (settles, answers)
        if name not in self._numbers:
            self._numbers[name] = len(self._places)
            self._places.append(name)
        return self._numbers[name]


Run = PromotionRun | RollbackRun


@dataclass
class Model:
    """The search. start is the world before anybody came; each evaluation is logged as its deployer arrives.

    known are the models that were there before. splits names the requests before which a step may be interrupted
    beside its first; None: before every one.
    """

    actors: tuple[Actor, ...]
    crashes: int
    start: World
    known: tuple[Challenger, ...]
    splits: frozenset[str] | None
    states: int = 0
    worlds: list[World] = field(default_factory=list)
    _ids: dict[World, int] = field(default_factory=dict)
    _moves: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)

    def run(self) -> None:
        """Visit every state; raises Violation for the first one that breaks an invariant."""
        self._runs = [self._run(actor) for actor in self.actors]
        self._state = Struct(f"=i{len(self._runs)}h")  # of a world's number and each run's place
        seen: set[bytes] = set()
        crashed = {self._state.pack(self._id(self.start), *[_ABSENT] * len(self._runs))}
        # All that is reached after n crashes is searched before anything that needs n + 1. A state that is reached
        # again with more crashes behind it can do nothing that it could not do with fewer, so it is visited once.
        for crashes_left in reversed(range(self.crashes + 1)):
            frontier, crashed = sorted(crashed - seen), set()
            seen.update(frontier)
            while frontier:
                following: list[bytes] = []
                for state in frontier:
                    moves, crashes = self._told(state)
                    if crashes_left:
                        crashed.update(after for after in crashes if after not in seen)
                    for after in moves:
                        if after not in seen:
                            seen.add(after)
                            following.append(after)
                frontier = following
        self.states = len(seen)
        for world in range(len(self.worlds)):
            self._check_quiet_runs(world)

    def _run(self, actor: Actor) -> Run:
        if isinstance(actor, Rollback):
            return RollbackRun(actor)
        others = (other for other in self.actors if isinstance(other, Challenger))
        return PromotionRun(actor, (*self.known, *others), self.splits)

    def _told(self, state: bytes) -> tuple[list[bytes], list[bytes]]:
        try:
            return self._after(state)
        except Violation as error:
            world, *places = self._state.unpack(state)
            stood = [f"{actor.name} {'absent' if place == _ABSENT else run.where(place)}"
                     for actor, run, place in zip(self.actors, self._runs, places, strict=True)]
            raise Violation(f"{error}; next to move in {stood}, {self.worlds[world]}") from error

    def _after(self, state: bytes) -> tuple[list[bytes], list[bytes]]:
        """The states after one run's next request, and those after one run's crash."""
        world, *places = self._state.unpack(state)
        moves, crashes = [], []
        for who, place in enumerate(places):
            if place in self._runs[who].ended:
                continue
            before, after = places[:who], places[who + 1:]
            after_world, after_place = self._move(who, world, place)
            moves.append(self._state.pack(after_world, *before, after_place, *after))
            if place not in (FRESH, _ABSENT):
                crashes.append(self._state.pack(world, *before, FRESH, *after))
        if not moves:
            check_settled(self.worlds[world], pushed=True)
            self._check_champion(self.worlds[world])
        return moves, crashes

    def _move(self, who: int, world: int, place: int) -> tuple[int, int]:
        key = (who, world, place)
        if key not in self._moves:
            self._moves[key] = self._moved(who, world, place)
        return self._moves[key]

    def _moved(self, who: int, world: int, place: int) -> tuple[int, int]:
        before, run, name = self.worlds[world], self._runs[who], self.actors[who].name
        if place == _ABSENT:  # its evaluation run ends
            return self._id(replace(before, evaluated=before.evaluated | {name})), FRESH
        after, next_place = run.move(before, place)
        if run.ended.get(next_place) in self._unexpected:
            raise Violation(f"{name} ended {run.ended[next_place]}")
        return self._id(after), next_place

    @property
    def _unexpected(self) -> set[Verdict | None]:
        """Every run ends promoted, kept or already; beside a rollback it may find itself blocked."""
        blocked = any(isinstance(actor, Rollback) for actor in self.actors)
        return {Verdict.UNDECIDED} if blocked else {Verdict.UNDECIDED, Verdict.REFUSED}

    def _check_quiet_runs(self, world: int) -> None:
        """Everybody is killed where they stand; then each deployer alone puts all right, and a second run is idle."""
        for who in range(len(self._runs)):
            once = self._quiet(who, world)
            check_settled(self.worlds[once], pushed=True)
            if self._quiet(who, once) != once:
                raise Violation("running twice changed something")

    def _quiet(self, who: int, world: int) -> int:
        place = FRESH
        if self.actors[who].name not in self.worlds[world].evaluated:
            world, place = self._move(who, world, _ABSENT)
        while place not in self._runs[who].ended:
            world, place = self._move(who, world, place)
        return world

    def _check_champion(self, world: World) -> None:
        """The champion is the best of those that passed: nobody who is left would pass against it."""
        if any(isinstance(actor, Rollback) or actor.force for actor in self.actors):
            return
        head = world.view.head
        best = max(POLICY.score(actor.run) for actor in self.actors if isinstance(actor, Challenger))
        if head is None or best - Decimal(head.score or 0) >= POLICY.threshold:
            raise Violation(f"the best challenger ({best}) is not the champion")

    def _id(self, world: World) -> int:
        if world not in self._ids:
            check_always(world)
            self._ids[world] = len(self.worlds)
            self.worlds.append(world)
        return self._ids[world]
