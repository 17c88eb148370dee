"""Deployments one after another over the fakes, with somebody who interferes at a single request."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from src.promotion.protocol import Ports, Progress, Step, promote
from tests.fakes.promotion_fakes import Challenger, Effect, World, check_always, ports_of

CHAMPION, CHALLENGER, LATER = Challenger("champion", 0.4), Challenger("challenger", 0.5), Challenger("later", 0.6)
WORSE = tuple(Challenger(f"worse {n}", 0.4 + n / 200) for n in range(1, 12))
KNOWN = (CHAMPION, CHALLENGER, LATER, *WORSE)


class Crash(BaseException):
    """The process is gone."""


@dataclass
class Line:
    """An Outside that remembers its requests; `before` and `after` may change the world at each, or raise."""

    world: World
    before: Callable[["Line", str], None] = lambda _line, _name: None
    after: Callable[["Line", str], None] = lambda _line, _name: None
    names: list[str] = field(default_factory=list)

    def call(self, name: str, effect: Effect) -> Any:
        self.names.append(name)
        self.before(self, name)
        self.world, answer = effect(self.world)
        check_always(self.world)
        self.after(self, name)
        return answer


def deploy(line: Line, challenger: Challenger = CHALLENGER, *, ports: Ports | None = None, push: bool = True
           ) -> tuple[Progress, list[Step]]:
    steps: list[Step] = []
    line.world = replace(line.world, evaluated=line.world.evaluated | {challenger.name})
    asked = ports or ports_of(challenger, KNOWN, line, push=push)
    return promote(asked, steps.append, Progress()), steps


def deployed(*challengers: Challenger, world: World | None = None, push: bool = True) -> World:
    """The world after quiet deployments in this order."""
    line = Line(world or World())
    for challenger in challengers:
        deploy(line, challenger, push=push)
    return line.world


STARTS = {"first": World(), "with a champion": deployed(CHAMPION)}
