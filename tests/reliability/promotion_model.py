"""The protocol as a finite model: runs that take turns request by request, and crash, in every possible order."""

from dataclasses import dataclass, field, replace
from decimal import Decimal
from struct import Struct

from src.model_selection import Verdict
from tests.fakes.factories import POLICY
from tests.fakes.promotion_fakes import Challenger, Violation, World, check_always, check_settled
from tests.fakes.promotion_runs import FRESH, Actor, PromotionRun, Rollback, RollbackRun, Run

_ABSENT = -1  # the place of a run before its evaluation ended


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
        self._state = Struct(f"=iB{len(self._runs)}h")  # of a world's number, the crashes so far, each run's place
        first = self._state.pack(self._id(self.start), 0, *[_ABSENT] * len(self._runs))
        seen, frontier = {first}, [first]
        while frontier:
            following: list[bytes] = []
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

    def _told(self, state: bytes) -> list[bytes]:
        try:
            return self._after(state)
        except Violation as error:
            world, _, *places = self._state.unpack(state)
            stood = [f"{actor.name} {'absent' if place == _ABSENT else run.where(place)}"
                     for actor, run, place in zip(self.actors, self._runs, places, strict=True)]
            raise Violation(f"{error}; next to move in {stood}, {self.worlds[world]}") from error

    def _after(self, state: bytes) -> list[bytes]:
        world, crashes, *places = self._state.unpack(state)
        found = []
        for who, place in enumerate(places):
            if place in self._runs[who].ended:
                continue
            before, after = places[:who], places[who + 1:]
            after_world, after_place = self._move(who, world, place)
            found.append(self._state.pack(after_world, crashes, *before, after_place, *after))
            if crashes < self.crashes and place not in (FRESH, _ABSENT):
                found.append(self._state.pack(world, crashes + 1, *before, FRESH, *after))
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
