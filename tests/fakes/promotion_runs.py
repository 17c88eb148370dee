"""One run of a command as places between two requests, so that a model can stop it there and take others' turns.

A step of src.promotion that makes several requests is replayed up to the next one, with the answers that it had.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from src.core.errors import PipelineError
from src.ledger.slots import LedgerView, Slot
from src.model_selection import Verdict
from src.promotion.protocol import Progress, Step, advance, append, reconcile
from src.promotion.rollback import Origin, rollback
from tests.fakes.promotion_fakes import Challenger, Effect, Violation, World, ports_of

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
        name = (now.step, now.view.head_sha256, now.decision, now.version, now.release, answers)
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
        origin = Origin("somebody", "a bug", "0" * 40, None, "2026-11-20T00:00:00+00:00")
        return rollback(view, origin, to=self._asked.to, block=None)

    def _number(self, settles: bool, answers: tuple[Any, ...]) -> int:
        name = (settles, answers)
        if name not in self._numbers:
            self._numbers[name] = len(self._places)
            self._places.append(name)
        return self._numbers[name]


Run = PromotionRun | RollbackRun
