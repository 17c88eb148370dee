"""The ledger: an altered, missing or oversized slot is found, and blocking, rollback and `previous` follow from it."""

import json
from typing import Any

import pytest

from src.core.errors import IntegrityError
from src.core.records import digest_of
from src.ledger.slots import MAX_CHARACTERS, NO_SLOT, LedgerView, parse_slots, slot_name
from tests.fakes.factories import hub_ref, ledger, rollback, slot
from utils.environment import MAX_REASON

THREE = ledger(("a", 0.3), ("b", 0.4), ("c", 0.5))
TEXTS = [each.text() for each in THREE.slots]


def promoted(view: LedgerView, model: str, **changes: Any) -> LedgerView:
    return LedgerView((*view.slots, slot(view, model, 0.5, **changes)))


def models(digests: frozenset[str]) -> set[str]:
    return {name for name in "abcdef" if digest_of(name) in digests}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("key", ["score", "actor", "reason", "time", "model_digest", "version", "git_commit"])
def test_an_altered_slot_breaks_the_chain_at_the_next_one(number: int, key: str) -> None:
    altered = json.loads(TEXTS[number - 1])
    altered[key] = {"version": 9, "model_digest": digest_of("evil")}.get(key, "altered")
    texts = [*TEXTS[: number - 1], json.dumps(altered), *TEXTS[number:], slot(THREE, "d", 0.6).text()]
    with pytest.raises(IntegrityError, match=rf"^ledger slot {number + 1}: does not continue slot {number}; .*status"):
        parse_slots(texts)


@pytest.mark.parametrize(("number", "texts"), [
    (1, TEXTS[1:]), (2, TEXTS[::2]), (1, TEXTS[1::-1]), (2, TEXTS[:1] * 2), (2, [TEXTS[0], TEXTS[2], TEXTS[1]]),
    (4, [*TEXTS, slot(THREE, "d", 0.6, number=5).text()]),
    (1, [slot(LedgerView(()), "a", 0.3, previous_sha256=digest_of("another ledger")).text()]),
], ids=["first missing", "missing", "reordered", "doubled", "last two reordered", "number skipped", "another ledger"])
def test_a_slot_that_does_not_follow_the_one_before_is_found(number: int, texts: list[str]) -> None:
    with pytest.raises(IntegrityError, match=rf"^ledger slot {number}: does not continue slot {number - 1}"):
        parse_slots(texts)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "Invalid JSON"), ("{}", "number: required key is missing"), (TEXTS[1][:-100], "Invalid JSON"),
     (TEXTS[1].replace('"promote"', '"steal"'), "kind: "), (TEXTS[1].replace('"number":2', '"number":"2"'), "number: "),
     (TEXTS[1].replace('"version":2', '"version":0'), "version: "), (TEXTS[1][:-1] + ',"colour":1}', "colour: unknown"),
     (TEXTS[1].replace('"bleu1":0.4', '"bleu1":NaN'), "bleu1: "),
     (TEXTS[1].replace('"bleu1":0.4', '"bleu1":4'), "bleu1: ")],
)
def test_a_slot_that_is_no_slot_is_named(text: str, said: str) -> None:
    with pytest.raises(IntegrityError, match=r"^ledger slot 2: ") as caught:
        parse_slots([TEXTS[0], text, TEXTS[2]])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_slot_that_mlflow_would_truncate_is_refused() -> None:
    with pytest.raises(IntegrityError, match=rf"ledger slot 4: \d+ characters, {MAX_CHARACTERS} fit"):
        slot(THREE, "d", 0.6, reason="x" * MAX_CHARACTERS).text()


def test_the_longest_slot_that_the_environment_allows_fits() -> None:
    wide = "\u6f22"
    largest = slot(
        THREE, "d", 0.123456789, reason=wide * MAX_REASON, actor=wide * 120, hub=hub_ref("d", "o" * 96 + "/n"),
        ci_url="https://github.com/" + "x" * 400, blocks=list(range(1, 100)), evaluation_run="e" * 32,
    )
    assert len(largest.text()) < MAX_CHARACTERS


def test_a_slot_is_ascii_and_comes_back_as_it_was() -> None:
    view = ledger(("a", 0.1 + 0.2, {"reason": "caf\u00e9 \U0001f600", "hub": hub_ref("a")}))
    text = view.slots[0].text()
    assert text.isascii()
    assert parse_slots([text]) == view
    assert parse_slots([text]).slots[0].text() == text


def test_slots_are_named_so_that_they_sort() -> None:
    assert [slot_name(number) for number in (1, 10, 99_999_999)] == ["s00000001", "s00000010", "s99999999"]


def test_an_empty_ledger_has_no_champion() -> None:
    empty = parse_slots([])
    assert (empty.head, empty.previous, empty.next_number, empty.head_sha256) == (None, None, 1, NO_SLOT)
    assert empty.blocked_digests == empty.promoted_digests == frozenset()
    assert empty.blocked_versions == frozenset()


def test_the_last_slot_is_the_champion_and_the_one_before_the_previous() -> None:
    assert ledger(("a", 0.3)).previous is None
    view = parse_slots(TEXTS)
    assert view.head == THREE.slots[2]
    assert view.previous == THREE.slots[1]
    assert view.next_number == 4
    assert models(view.promoted_digests) == {"a", "b", "c"}


def test_a_rollback_blocks_what_came_after_its_target_and_goes_back_to_it() -> None:
    view = rollback(THREE, 1, blocks=[2, 3])
    assert view.head
    assert (view.head.version, view.head.number) == (1, 4)
    assert view.blocked_versions == {2, 3}
    assert (models(view.blocked_digests), models(view.promoted_digests)) == ({"b", "c"}, {"a"})
    assert view.previous is None
    assert parse_slots([each.text() for each in view.slots]) == view


def test_previous_is_the_last_unblocked_other_version_so_that_rolling_back_twice_goes_on() -> None:
    assert THREE.previous
    once = rollback(THREE, THREE.previous.version, blocks=[3])
    assert once.previous
    assert once.previous.version == 1
    twice = rollback(once, once.previous.version, blocks=[2, 3])
    assert twice.previous is None
    assert twice.blocked_versions == {2, 3}


def test_a_version_that_is_promoted_again_is_no_longer_blocked() -> None:
    view = promoted(rollback(THREE, 1, blocks=[2, 3]), "c", kind="force", version=3)
    assert view.blocked_versions == {2}
    assert models(view.promoted_digests) == {"a", "c"}
    assert view.previous
    assert view.previous.version == 1


def test_a_rollback_to_a_blocked_version_unblocks_it() -> None:
    view = rollback(rollback(THREE, 1, blocks=[2, 3]), 3, blocks=[])
    assert view.blocked_versions == {2}


def test_a_slot_can_unblock_without_promoting() -> None:
    view = promoted(rollback(THREE, 1, blocks=[2, 3]), "d", version=4, unblocks=[2])
    assert view.blocked_versions == {3}


def test_a_forced_worse_champion_can_be_blocked_by_a_rollback_to_the_better_one() -> None:
    forced = promoted(ledger(("a", 0.5)), "b", kind="force", version=2)
    assert forced.previous
    view = rollback(forced, forced.previous.version, blocks=[2])
    assert (models(view.blocked_digests), models(view.promoted_digests)) == ({"b"}, {"a"})


def test_a_model_with_two_versions_is_blocked_and_unblocked_as_one() -> None:
    """One model under two score contracts: its champion must never count as blocked, or nothing compares with it."""
    view = promoted(ledger(("a", 0.3), ("b", 0.4)), "a", version=3, key=digest_of(["a", "new contract"]))
    back = rollback(view, 2, blocks=[3])
    assert back.blocked_versions == {1, 3}
    assert back.previous is None
    further = rollback(back, 1, blocks=[2, 3])
    assert further.head
    assert further.head.model_digest in further.promoted_digests
    assert further.blocked_versions == {2}


def test_blocking_a_version_that_no_slot_holds_blocks_no_model() -> None:
    assert promoted(THREE, "d", blocks=[77]).blocked_digests == frozenset()


def test_the_head_is_never_blocked_by_its_own_slot() -> None:
    view = rollback(THREE, 2, blocks=[1, 2, 3], unblocks=[])
    assert view.blocked_versions == {1, 3}
