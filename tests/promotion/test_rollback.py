"""Which slot a rollback, a block or an adoption appends: rules one by one, then over every short history."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest

from src.core.errors import InvalidParams, Refused
from src.core.records import digest_of
from src.ledger.slots import LedgerView, Slot, parse_slots
from src.promotion.rollback import Origin, UnrecordedChampion, adoption, default_target, info, rollback, slot_of_version
from tests.fakes.factories import hub_ref, ledger, slot

BY = Origin(actor="octocat", reason="bad answers", git_commit="1" * 40, ci_url=None, time="2026-11-20T13:00:00+00:00")
EMPTY = LedgerView(())
THREE = ledger(("a", 0.3, {"hub": hub_ref("a")}), ("b", 0.4, {"hub": hub_ref("b")}), ("c", 0.5, {"hub": hub_ref("c")}))
FOUND = UnrecordedChampion(version=9, key=digest_of("key"), model_digest=digest_of("x"), score=None, contract=None,
              evaluation_run=None, hub=None)


def after(view: LedgerView, made: Slot | None) -> LedgerView:
    """The view with this slot, read as if from the store."""
    assert made
    return parse_slots([each.text() for each in (*view.slots, made)])


def stands(view: LedgerView) -> tuple[int, int | None, set[int]]:
    """The versions of champion and previous champion, and those that are blocked."""
    return view.slots[-1].version, view.previous.version if view.previous else None, {*view.blocked_versions}


def back(view: LedgerView, to: int | None = None, block: int | None = None) -> LedgerView:
    return after(view, rollback(view, BY, to=to, block=block))


@pytest.mark.parametrize(("view", "to", "said"), [
    (EMPTY, 1, "nothing was ever promoted"), (EMPTY, None, "nothing was ever promoted"),
    (ledger(("a", 0.3)), None, r"version 1 is the champion.*--to VERSION")], ids=["none, named", "none", "first"])
def test_before_a_second_promotion_there_is_nothing_to_go_back_to(view: LedgerView, to: int | None, said: str) -> None:
    with pytest.raises(Refused, match=said):
        rollback(view, BY, to=to, block=None)


@pytest.mark.parametrize("flags", [{"to": 7, "block": None}, {"to": None, "block": 7}, {"to": 1, "block": 7}])
def test_a_version_that_was_never_promoted_is_a_wrong_flag(flags: dict[str, Any]) -> None:
    with pytest.raises(InvalidParams, match=r"version 7: was never promoted; the ledger knows 1, 2, 3"):
        rollback(THREE, BY, **flags)


@pytest.mark.parametrize("version", [1, 2])
def test_the_target_cannot_be_blocked_at_the_same_time(version: int) -> None:
    with pytest.raises(InvalidParams, match=f"--block {version}: is the model to go back to"):
        rollback(THREE, BY, to=version, block=version)


def test_the_old_model_stands_again_with_all_that_belongs_to_it() -> None:
    first, again = THREE.slots[0], rollback(THREE, BY, to=1, block=None)
    assert again
    kept = ("key", "model_digest", "version", "score", "metrics", "contract", "evaluation_run", "hub")
    assert [getattr(again, name) for name in kept] == [getattr(first, name) for name in kept]
    assert (again.kind, again.number, again.actor, again.reason) == ("rollback", 4, "octocat", "bad answers")
    assert (again.blocks, again.unblocks) == ([2, 3], [])


def test_without_a_version_it_goes_to_the_last_other_model_that_is_not_blocked() -> None:
    once = back(THREE)
    assert stands(once) == (2, 1, {3})
    twice = back(once)
    assert stands(twice) == (1, None, {2, 3})
    with pytest.raises(Refused, match="no other model that is not blocked"):
        rollback(twice, BY, to=None, block=None)


def test_a_blocked_version_comes_back_by_name_and_is_unblocked() -> None:
    view = back(back(THREE, to=1), to=3)
    assert stands(view) == (3, 1, {2})
    assert (view.slots[-1].unblocks, view.slots[-1].blocks) == ([3], [])


def test_going_forward_again_blocks_nothing_that_was_promoted_before() -> None:
    assert stands(back(back(THREE, to=1), to=2)) == (2, 1, {3})


def test_blocking_another_version_repeats_the_champion() -> None:
    view = back(THREE, block=2)
    assert stands(view) == (3, 1, {2})
    assert view.slots[-1].hub == THREE.slots[2].hub


def test_blocking_the_champion_is_a_rollback() -> None:
    assert back(THREE, block=3) == back(THREE)


def test_a_rollback_may_block_one_more_version() -> None:
    assert stands(back(THREE, to=2, block=1)) == (2, None, {1, 3})


@pytest.mark.parametrize("flags", [{"to": 1, "block": None}, {"to": None, "block": 2}, {"to": 2, "block": 1}])
def test_asking_twice_appends_once(flags: dict[str, Any]) -> None:
    view = after(THREE, rollback(THREE, BY, **flags))
    assert rollback(view, BY, **flags) is None


def test_one_model_under_two_contracts_is_blocked_and_unblocked_as_one() -> None:
    view = LedgerView((*THREE.slots, slot(THREE, "a", 0.6, key=digest_of("a again"), version=4)))
    assert stands(back(view)) == (3, 2, {1, 4})
    assert back(view, to=1).blocked_versions == {2, 3}
    with pytest.raises(InvalidParams, match="is the model to go back to"):
        rollback(view, BY, to=1, block=4)


def test_the_release_that_a_version_once_had_on_the_hub_is_shown_again() -> None:
    view = LedgerView((*THREE.slots, slot(THREE, "a", 0.3, kind="force", version=1)))  # without the Hub this time
    assert back(LedgerView((*view.slots, slot(view, "d", 0.9))), to=1).slots[-1].hub == hub_ref("a")


def test_the_latest_slot_of_a_version_counts() -> None:
    view = LedgerView((*THREE.slots, slot(THREE, "a", 0.7, version=1)))
    assert slot_of_version(view, 1).number == 4


def test_what_stands_outside_of_an_empty_ledger_is_its_genesis() -> None:
    (made,) = after(EMPTY, adoption(EMPTY, FOUND, BY)).slots
    assert (made.kind, made.version, made.reason) == ("genesis", 9, "bad answers")
    assert (made.metrics, made.model_digest) == (None, FOUND.model_digest)


def test_what_stands_outside_of_a_ledger_is_taken_in_by_force_and_can_be_rolled_back() -> None:
    view = after(THREE, adoption(THREE, FOUND, BY))
    assert (view.slots[-1].kind, view.slots[-1].number) == ("force", 4)
    assert adoption(view, FOUND, BY) is None
    assert stands(back(view)) == (3, 2, {9})


def test_adopting_a_version_that_the_ledger_knows_unblocks_it_and_keeps_what_belongs_to_it() -> None:
    view = back(THREE, to=1)
    known = UnrecordedChampion(**{**vars(FOUND), "version": 3, "key": THREE.slots[2].key})
    again = after(view, adoption(view, known, BY))
    made = again.slots[-1]
    assert (made.kind, made.hub, made.score) == ("force", hub_ref("c"), "0.5")
    assert again.blocked_versions == {2}


def test_another_model_with_a_number_of_the_ledger_is_refused_because_blocks_name_numbers() -> None:
    stranger = UnrecordedChampion(**{**vars(FOUND), "version": 2})
    with pytest.raises(Refused, match=r"version 2: is another model .* under a number above 3, set the alias"):
        adoption(THREE, stranger, BY)


# Over every history of four steps.

Action = Callable[[LedgerView], LedgerView]


def actions() -> Iterator[Action]:
    yield lambda view: LedgerView((*view.slots, slot(view, f"m{view.next_number}", 0.5)))
    yield lambda view: LedgerView((*view.slots, slot(view, "m1", 0.5, version=1, kind="force")))
    for to, block in [(None, None), (1, None), (2, None), (None, 1), (None, 2), (1, 2)]:
        yield partial(maybe, to=to, block=block)


def maybe(view: LedgerView, to: int | None, block: int | None) -> LedgerView:
    try:
        made = rollback(view, BY, to=to, block=block)
    except (Refused, InvalidParams):
        return view
    if made is None:
        return view
    grown = after(view, made)
    check(view, grown, to, block)
    return grown


def check(before: LedgerView, now: LedgerView, to: int | None, block: int | None) -> None:
    old, head = before.slots[-1], now.slots[-1]
    assert head.version not in now.blocked_versions
    assert now.previous is None or now.previous.version not in {head.version, *now.blocked_versions}
    assert to in (None, head.version)
    assert block is None or block in now.blocked_versions
    if to is None and block is None:
        assert old.version in now.blocked_versions
        assert head.version == default_target(before).version
    if to is None and block not in (None, old.version):
        assert head.version == old.version
    assert rollback(now, BY, to=head.version, block=block) is None
    assert now.slots[:-1] == before.slots


def test_over_every_short_history_the_champion_is_never_blocked_and_asking_twice_changes_nothing() -> None:
    histories = [*product(tuple(actions()), repeat=4)]
    assert len(histories) == 8**4
    for chosen in histories:
        view = ledger(("m1", 0.5), ("m2", 0.5))
        for action in chosen:
            view = action(view)


def test_the_record_names_the_champion_and_who_brought_it_back() -> None:
    view = back(THREE, to=1)
    facts = info(view, view.head, model_name="shop", result="rolled_back")
    assert (facts["result"], facts["reason"], facts["code"]) == ("rolled_back", "rollback", 0)
    assert facts["champion"] == {"version": 1, "score": "0.3", "key": view.slots[0].key}
    assert (facts["blocked_versions"], facts["actor"], facts["stated_reason"]) == ([2, 3], "octocat", "bad answers")
    assert facts["hub"] == hub_ref("a").model_dump()


def test_the_record_of_a_repair_that_changed_nothing_names_nobody() -> None:
    facts = info(EMPTY, None, model_name="shop", result="repaired")
    assert (facts["champion"], facts["actor"], facts["reason"]) == (None, None, "repaired")
