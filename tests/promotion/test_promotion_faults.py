"""A crash, a failing service or a lost reply at every single request, and what the next run makes of it."""

from collections.abc import Callable

import pytest

from src.core.errors import HubError, PipelineError, RunAgain, Undecided
from src.model_selection import Verdict
from tests.fakes.promotion_fakes import World, check_settled
from tests.fakes.promotion_line import CHALLENGER, CHAMPION, LATER, STARTS, Crash, Line, deploy, deployed


def requests(start: World) -> list[str]:
    line = Line(start)
    deploy(line)
    return line.names


POINTS = [(name, number, request) for name, start in STARTS.items() for number, request in enumerate(requests(start))]
every_point = pytest.mark.parametrize(
    ("start", "number"), [(STARTS[name], number) for name, number, _ in POINTS],
    ids=[f"{name}-{number}-{request}" for name, number, request in POINTS],
)


def at(number: int, error: BaseException) -> Callable[[Line, str], None]:
    def fail(line: Line, _name: str) -> None:
        if len(line.names) == number + 1:
            raise error

    return fail


def struck(start: World, moment: str, number: int, error: BaseException) -> Line:
    """A line that fails at a request, before it is carried out or after."""
    fault = at(number, error)
    return Line(start, before=fault) if moment == "before" else Line(start, after=fault)


def as_if_never_killed(world: World, start: World) -> bool:
    return world == deployed(CHALLENGER, world=start)


@every_point
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_at_any_request_and_one_run_more_end_like_a_run_that_never_crashed(
    start: World, number: int, moment: str
) -> None:
    line = struck(start, moment, number, Crash())
    with pytest.raises(Crash):
        deploy(line)
    ended, _ = deploy(Line(line.world))
    again = Line(line.world)
    ended, _ = deploy(again)
    check_settled(again.world)
    assert as_if_never_killed(again.world, start)
    assert ended.decided().verdict in (Verdict.PROMOTE, Verdict.ALREADY)


@every_point
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("error", [HubError("Hub: no answer"), Undecided("MLflow: no answer")], ids=["hub", "mlflow"])
def test_a_service_that_fails_at_any_request_promotes_nothing_or_says_that_it_did(
    start: World, number: int, moment: str, error: PipelineError
) -> None:
    line = struck(start, moment, number, error)
    with pytest.raises(PipelineError) as caught:
        deploy(line)
    promoted = len(line.world.slots) > len(start.slots)
    # A claim whose reply is lost may stand or not: the next run finds out.
    assert isinstance(caught.value, RunAgain) is (promoted or line.names[-1] == "ledger.claim")
    assert str(error) in str(caught.value)
    if not promoted:
        assert (line.world.champion, line.world.main, line.world.tags) == (start.champion, start.main, start.tags)
    again = Line(line.world)
    deploy(again)
    assert as_if_never_killed(again.world, start)


@every_point
def test_a_crash_at_any_request_is_finished_by_any_other_models_run(start: World, number: int) -> None:
    line = Line(start, before=at(number, Crash()))
    with pytest.raises(Crash):
        deploy(line)
    other = Line(line.world)
    deploy(other, CHAMPION)
    check_settled(other.world)
    later = Line(line.world)
    assert deploy(later, LATER)[0].decided().verdict is Verdict.PROMOTE
    check_settled(later.world)
