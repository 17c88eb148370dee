"""The protocol step by step, over fakes that fail, crash or are overtaken at any single request."""

import logging
from dataclasses import replace
from typing import Any

import pytest

from src.core.errors import HubError, IntegrityError, RunAgain, Undecided
from src.ledger.ports import Holders
from src.ledger.slots import LedgerView
from src.model_selection import Reason, Verdict
from src.promotion import protocol
from src.promotion.protocol import MAX_ATTEMPTS, Progress, Step
from tests.fakes.promotion_fakes import (
    Challenger,
    FakeHub,
    FakeRegistry,
    World,
    check_settled,
    ports_of,
    without_repository,
)
from tests.fakes.promotion_line import CHALLENGER, CHAMPION, KNOWN, LATER, STARTS, WORSE, Line, deploy, deployed

WHOLE = [Step.PREFLIGHT, Step.RECONCILE, Step.SETTLE, Step.MIRROR, Step.DECIDE, Step.ASSEMBLE, Step.REGISTER,
         Step.PUBLISH, Step.CLAIM, Step.PROJECT_HUB, Step.PROJECT_CHAMPION, Step.PROJECT_PREVIOUS, Step.PROJECT_STAGE,
         Step.SETTLE, Step.MIRROR, Step.RECORD]


both_starts = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)


@both_starts
def test_the_steps_come_in_their_order(start: World) -> None:
    ended, steps = deploy(Line(start))
    assert steps == WHOLE
    assert ended.decided().verdict is Verdict.PROMOTE


def test_what_is_changed_outside_is_logged_in_its_order(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        deploy(Line(STARTS["with a champion"]))
    told = caplog.messages
    assert told[:5] == [
        "ledger: 1 entry, the champion is version 1", "registry and Hub: agree with the ledger",
        "Hub: the copy of the ledger has 1 entry", "release: assembled and verified",
        "registry: the model is version 2"]
    assert told[5].startswith("Hub: the release is in ")
    assert told[6:] == [
        "ledger: wrote entry 2, version 2 is the champion from now on", "Hub: main and the tag v2 show version 2",
        "registry: alias champion is version 2", "registry: alias previous is version 1",
        "registry: stage Production is version 2, if the server has stages", "registry and Hub: agree with the ledger",
        "Hub: the copy of the ledger has 2 entries"]


def test_nothing_is_visible_before_the_claim_and_all_of_it_after() -> None:
    start = STARTS["with a champion"]

    def look(line: Line, name: str) -> None:
        shown = (line.world.champion, line.world.previous, line.world.production, line.world.main, line.world.tags)
        if len(line.world.slots) == len(start.slots):
            assert shown == (start.champion, start.previous, start.production, start.main, start.tags), name

    line = Line(start, after=look)
    deploy(line)
    assert line.names.index("ledger.claim") < line.names.index("registry.set_champion")
    assert (line.world.champion, line.world.previous, line.world.production) == (2, 1, frozenset({2}))
    assert (line.world.main, line.world.branches, len(line.world.tags)) == (CHALLENGER.key, frozenset(), 2)


@both_starts
def test_running_twice_changes_nothing_and_sends_no_change(start: World) -> None:
    after = deployed(CHALLENGER, world=start)
    line = Line(after)
    ended, steps = deploy(line)
    assert (ended.decided().verdict, line.world) == (Verdict.ALREADY, after)
    assert steps == [*WHOLE[:5], Step.RECORD]
    changes = {"ledger.claim", "registry.create", "registry.set_champion", "hub.publish", "hub.commit", "hub.mirror"}
    assert not changes & set(line.names)


def test_a_kept_challenger_registers_and_publishes_nothing() -> None:
    start = deployed(LATER)
    line = Line(start)
    ended, steps = deploy(line)
    assert (ended.decided().verdict, ended.decided().reason) == (Verdict.KEEP, Reason.NOT_BEST)
    assert replace(line.world, evaluated=start.evaluated) == start
    assert steps[-2:] == [Step.DECIDE, Step.RECORD]


def overtake(line: Line, rival: Challenger) -> None:
    """Another deployer, who decided before this one's evaluation was logged, promotes all at once."""
    evaluated = line.world.evaluated
    line.world = deployed(rival, world=replace(line.world, evaluated=evaluated - {CHALLENGER.name}))
    line.world = replace(line.world, evaluated=line.world.evaluated | evaluated)


def overtaken(*rivals: Challenger, start: World) -> Line:
    """An Outside in which a rival is faster at each claim, as long as there are rivals."""
    waiting = list(rivals)
    return Line(start, before=lambda line, name: overtake(line, waiting.pop(0)) if name == "ledger.claim" and waiting
                else None)


def test_a_lost_claim_is_decided_again_and_a_better_rival_keeps_its_place() -> None:
    line = overtaken(LATER, start=STARTS["with a champion"])
    ended, steps = deploy(line)
    assert (ended.decided().verdict, ended.decided().reason) == (Verdict.KEEP, Reason.NOT_BEST)
    assert steps == [*WHOLE[:9], Step.DECIDE, Step.RECORD]
    check_settled(line.world)
    assert line.world.main == LATER.key


def test_a_lost_claim_against_a_worse_rival_is_taken_up_again() -> None:
    line = overtaken(WORSE[0], start=STARTS["with a champion"])
    ended, steps = deploy(line)
    assert ended.decided().verdict is Verdict.PROMOTE
    assert steps == [*WHOLE[:9], *WHOLE[4:]]
    assert [slot.version for slot in line.world.view.slots] == [1, 3, 2]  # registered before the rival was
    check_settled(line.world)


def test_a_twin_that_was_faster_makes_it_already() -> None:
    line = overtaken(replace(CHALLENGER, actor="twin"), start=World())
    assert deploy(line)[0].decided().verdict is Verdict.ALREADY
    assert len(line.world.slots) == len(line.world.versions) == 1


def test_ten_lost_claims_end_with_run_again() -> None:
    line = overtaken(*WORSE, start=STARTS["with a champion"])
    with pytest.raises(RunAgain, match="other deployers wrote entry 11 first, 10 times in a row; run it again"):
        deploy(line)
    assert line.names.count("ledger.claim") == MAX_ATTEMPTS
    assert deploy(Line(line.world))[0].decided().verdict is Verdict.PROMOTE


def test_projections_that_another_process_disturbs_are_written_until_they_agree() -> None:
    def disturb(line: Line, name: str) -> None:
        if name == "registry.aliases" and line.names.count("registry.set_champion") in (1, 2):
            line.world = replace(line.world, champion=1, production=frozenset({1, 2}))

    line = Line(STARTS["with a champion"], before=disturb)
    _, steps = deploy(line)
    assert steps.count(Step.SETTLE) == 1 + 3
    check_settled(line.world)


class Deaf(FakeRegistry):
    """A server that accepts stage changes and does not carry them out."""

    def set_production(self, version: int) -> None:
        pass


def test_projections_that_never_agree_end_with_run_again_and_not_in_a_loop() -> None:
    line = Line(World())
    with pytest.raises(RunAgain, match="version 1 is the champion, but registry or Hub do not show it after 10"):
        deploy(line, ports=replace(ports_of(CHALLENGER, KNOWN, line), registry=Deaf(line)))
    assert line.names.count("registry.aliases") == 1 + MAX_ATTEMPTS
    assert line.world.champion == 1


def test_a_hand_moved_alias_is_put_right_by_a_run_that_keeps() -> None:
    world = deployed(CHAMPION, LATER)
    for edited in (replace(world, champion=1), replace(world, champion=None), replace(world, previous=2),
                   replace(world, production=frozenset({1, 2})), replace(world, main=CHAMPION.key),
                   replace(world, tags=frozenset()), replace(world, mirrored=world.mirrored[:1])):
        branches = frozenset((slot.key, slot.hub.commit) for slot in world.view.slots if slot.hub)
        line = Line(replace(edited, branches=branches))
        assert deploy(line)[0].decided().verdict is Verdict.KEEP
        check_settled(line.world)


def test_a_tag_at_another_commit_is_reported_and_never_moved() -> None:
    world = deployed(CHAMPION)
    [commit] = _commits(world)
    line = Line(replace(world, tags=frozenset({(1, "evil")}), branches=frozenset({(CHAMPION.key, commit)})))
    with pytest.raises(IntegrityError, match="tag v1 is at evil"):
        deploy(line)
    assert (1, "evil") in line.world.tags
    assert len(line.world.slots) == 1


def _commits(world: World) -> list[str]:
    return [slot.hub.commit for slot in world.view.slots if slot.hub]


def test_a_better_model_that_comes_back_after_a_forced_one_keeps_its_version_commit_and_tag() -> None:
    world = deployed(CHALLENGER, replace(CHAMPION, force=True))
    line = Line(world)
    ended, _ = deploy(line)
    assert ended.decided().reason is Reason.IMPROVED
    assert "hub.publish" not in line.names
    first, _, third = line.world.view.slots
    assert (third.version, third.hub) == (first.version, first.hub)
    check_settled(line.world)


def test_without_the_hub_slot_and_projections_do_without_it() -> None:
    world = deployed(CHAMPION, CHALLENGER, push=False)
    assert [slot.hub for slot in world.view.slots] == [None, None]
    assert (world.main, world.commits, world.mirrored) == (None, frozenset(), ())
    assert (world.champion, world.previous, world.production) == (2, 1, frozenset({2}))


def test_a_promotion_without_the_hub_leaves_main_at_the_last_one_that_had_it() -> None:
    world = deployed(CHALLENGER, world=deployed(CHAMPION), push=False)
    assert (world.champion, world.main) == (2, CHAMPION.key)
    later = deployed(LATER, world=world)
    assert later.main == LATER.key
    check_settled(later)


def test_a_model_that_was_promoted_without_the_hub_may_be_published_when_it_comes_again() -> None:
    world = deployed(CHALLENGER, replace(CHAMPION, force=True), push=False)
    again = deployed(CHALLENGER, world=world)
    assert again.view.slots[-1].hub
    assert again.main == CHALLENGER.key
    check_settled(again)


BELOW = Challenger("below", 0.3)


class Elsewhere(FakeHub):
    repo = "shop/new"


def test_a_champion_that_was_published_elsewhere_is_published_to_the_repository_that_is_named_now() -> None:
    line = Line(without_repository(deployed(CHAMPION)))
    ended, steps = deploy(line, CHAMPION, ports=replace(ports_of(CHAMPION, KNOWN, line), hub=Elsewhere(line)))
    assert ended.decided().verdict is Verdict.ALREADY
    first, again = line.world.view.slots
    assert (again.kind, again.version, again.score, again.blocks) == ("republish", 1, first.score, [])
    assert again.hub
    assert again.hub.repo == "shop/new"
    assert steps.index(Step.REPUBLISH) > steps.index(Step.DECIDE)
    check_settled(line.world)


@pytest.mark.parametrize("start", [deployed(CHAMPION, push=False), without_repository(deployed(CHAMPION))],
                         ids=["promoted without the Hub", "repository deleted"])
class TestAHeadThatTheHubLacks:
    def test_is_published_by_a_run_that_keeps_it_in_one_slot(self, start: World) -> None:
        line = Line(start)
        ended, _ = deploy(line, BELOW)
        assert ended.decided().verdict is Verdict.KEEP
        assert [slot.kind for slot in line.world.view.slots] == ["promote", "republish"]
        check_settled(line.world, pushed=True)
        before = line.world
        deploy(line, BELOW)
        assert line.world == before

    def test_is_not_uploaded_by_a_run_that_replaces_it(self, start: World) -> None:
        line = Line(start)
        _, steps = deploy(line, CHALLENGER)
        assert Step.REPUBLISH not in steps
        assert [slot.kind for slot in line.world.view.slots] == ["promote", "promote"]
        check_settled(line.world, pushed=True)

    def test_is_left_to_others_by_a_run_that_may_not_promote(self, start: World) -> None:
        line = Line(start)
        deploy(line, BELOW, ports=replace(ports_of(BELOW, KNOWN, line), republication=None))
        assert (line.world.main, len(line.world.slots)) == (None, 1)

    def test_is_reported_as_pending_when_the_hub_fails_once_the_slot_is_written(self, start: World) -> None:
        def fail(_line: Line, name: str) -> None:
            if name == "hub.tag":
                raise HubError("the Hub is away")

        line = Line(start, before=fail)
        with pytest.raises(RunAgain, match="version 1 was published again, but registry or Hub do not show it yet"):
            deploy(line, BELOW)
        line.before = lambda _line, _name: None
        deploy(line, BELOW)
        assert len(line.world.slots) == 2
        check_settled(line.world, pushed=True)

    def test_is_not_published_for_ever_to_a_hub_that_forgets_it(self, start: World) -> None:
        def forget(line: Line, name: str) -> None:
            if name == "hub.tag":
                line.world = without_repository(line.world)

        line = Line(start, after=forget)
        with pytest.raises(RunAgain, match="was published again, but the Hub does not have it"):
            deploy(line, BELOW)
        assert len(line.world.slots) == 2


def test_a_head_that_cannot_be_made_again_does_not_stop_a_deployment() -> None:
    class Unable(FakeHub):
        def republish(self, _view: Any) -> None:
            return None

    line = Line(deployed(CHAMPION, push=False))
    ended, _ = deploy(line, BELOW, ports=replace(ports_of(BELOW, KNOWN, line), hub=Unable(line)))
    assert ended.decided().verdict is Verdict.KEEP
    assert len(line.world.slots) == 1


def test_a_model_comes_back_with_a_new_commit_if_its_repository_was_deleted() -> None:
    world = without_repository(deployed(CHAMPION, CHALLENGER))
    line = Line(world)
    deploy(line, replace(CHAMPION, force=True))
    assert [slot.kind for slot in line.world.view.slots] == ["promote", "promote", "force"]
    check_settled(line.world, pushed=True)


@both_starts
def test_a_preflight_that_fails_touches_nothing(start: World) -> None:
    class Overwritable:
        def view(self) -> LedgerView:
            return start.view

        def probe(self) -> None:
            raise Undecided("MLflow: this server lets a run param be overwritten")

    line = Line(start)
    with pytest.raises(Undecided, match="overwritten"):
        deploy(line, ports=replace(ports_of(CHALLENGER, KNOWN, line), ledger=Overwritable()))  # type: ignore[arg-type]
    assert line.names == []


def test_a_server_without_stages_is_settled_by_its_aliases() -> None:
    class Stageless(FakeRegistry):
        def set_production(self, version: int) -> None:
            pass

        def expected(self, head: Any, previous: Any) -> Holders:
            return replace(super().expected(head, previous), production=frozenset())

    line = Line(World())
    deploy(line, ports=replace(ports_of(CHALLENGER, KNOWN, line), registry=Stageless(line)))
    assert (line.world.champion, line.world.production) == (1, frozenset())


def test_a_step_out_of_its_order_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="a step ran before"):
        protocol.advance(Progress(Step.CLAIM), ports_of(CHALLENGER, KNOWN, Line(World())))
    assert Progress().view == LedgerView(())
