"""The protocol as a finite model: runs that take turns request by request, and crash, in every possible order.

A state is the World, where each run stands, and how often somebody crashed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from src.model_selection import Verdict
from tests.fakes.factories import POLICY
from tests.fakes.promotion_fakes import Challenger, Violation, World, check_always, check_settled
from tests.fakes.promotion_runs import FRESH, Actor, PromotionRun, Rollback, RollbackRun, Run

_BITS = 14
_ABSENT = (1 << _BITS) - 1  # before its evaluation run ended


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
        first = self._pack(self._id(self.start), [_ABSENT] * len(self._runs), 0)
        seen, frontier = {first}, [first]
        while frontier:
            following: list[int] = []
            for state in frontier:
                for after in self._told(state):
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

    def _told(self, state: int) -> list[int]:
        try:
            return self._after(state)
        except Violation as error:
            world, places, _ = self._unpack(state)
            stood = [f"{actor.name} {'absent' if place == _ABSENT else run.where(place)}"
                     for actor, run, place in zip(self.actors, self._runs, places, strict=True)]
            raise Violation(f"{error}; next to move in {stood}, {self.worlds[world]}") from error

    def _after(self, state: int) -> list[int]:
        world, places, crashes = self._unpack(state)
        found = []
        for who, place in enumerate(places):
            if place in self._runs[who].ended:
                continue
            after_world, after_place = self._move(who, world, place)
            found.append(self._with(state, who, after_place, after_world, crashes))
            if crashes < self.crashes and place not in (FRESH, _ABSENT):
                found.append(self._with(state, who, FRESH, world, crashes + 1))
        if not found:
            check_settled(self.worlds[world])
            self._check_champion(self.worlds[world])
        return found

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
        assert next_place < _ABSENT
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
            check_settled(self.worlds[once])
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

    def _pack(self, world: int, places: Sequence[int], crashes: int) -> int:
        packed = world << 4 | crashes
        for place in places:
            packed = packed << _BITS | place
        return packed

    def _with(self, state: int, who: int, place: int, world: int, crashes: int) -> int:
        _, places, _ = self._unpack(state)
        places[who] = place
        return self._pack(world, places, crashes)

    def _unpack(self, state: int) -> tuple[int, list[int], int]:
        places = []
        for _ in self._runs:
            places.append(state & _ABSENT)
            state >>= _BITS
        return state >> 4, places[::-1], state & 15
