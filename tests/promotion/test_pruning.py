"""Which weights may go: never champion's and previous's, over made-up ledgers and in every order of requests."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement

import pytest

from src.core.errors import Refused
from src.ledger.slots import LedgerView, Slot
from src.promotion.rollback import Origin, default_target, kept, prunable, prune, require_weights, rollback
from tests.fakes.factories import ledger, slot

BY = Origin("me", "test", "0" * 40, None, "2026-11-21T00:00:00+00:00")


def promoted(view: LedgerView, version: int) -> LedgerView:
    """The ledger after the promotion of a version."""
    return LedgerView((*view.slots, slot(view, f"model-{version}", 0.5, version=version)))


def ledger_to(version: int) -> LedgerView:
    """The ledger after the promotions of versions 1 to this one."""
    return ledger(*((f"model-{number}", 0.5) for number in range(1, version + 1)))


def back(view: LedgerView, to: int | None) -> LedgerView:
    made = rollback(view, BY, to=to, block=None)
    return LedgerView((*view.slots, made)) if made else view


def random_ledger(rng: random.Random) -> LedgerView:
    view = ledger_to(1)
    for _ in range(rng.randrange(12)):
        known = sorted({each.version for each in view.slots})
        view = back(view, rng.choice(known)) if rng.random() < 0.4 else promoted(view, known[-1] + 1)
    return view


def test_neither_champion_nor_previous_nor_where_a_rollback_goes_is_ever_prunable() -> None:
    rng, pruned = random.Random(7), 0
    for _ in range(2000):
        view = random_ledger(rng)
        for keep in (1, 2, 3):
            going = prunable(view, keep)
            pruned += len(going)
            assert view.slots[-1].version not in going
            if view.previous:
                assert default_target(view).version not in going
                assert view.previous.version not in going
            assert len({each.version for each in view.slots} - going) <= max(keep, 1) + 1
        assert not prunable(view, 0)
    assert pruned > 1000


def test_blocked_versions_count_as_the_others_do() -> None:
    assert kept(back(ledger_to(5), 2), 3) == {2, 5, 4, 1}


def test_what_was_adopted_is_not_champions_to_delete() -> None:
    view = ledger_to(4)
    adopted = LedgerView((view.slots[0].model_copy(update={"metrics": None}), *view.slots[1:]))
    assert prunable(view, 2) == {1, 2}
    assert prunable(adopted, 2) == {2}


@dataclass
class Outside:
    """Ledger and weights in memory; before each request `meanwhile` lets others act."""

    current: LedgerView
    meanwhile: Callable[[int], None] = lambda _: None
    marks: dict[int, bool] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)
    lost: frozenset[int] = frozenset()
    requests: int = 0

    def _request(self) -> None:
        self.requests += 1
        self.meanwhile(self.requests)

    def view(self) -> LedgerView:
        self._request()
        return self.current

    def probe(self) -> None: ...

    def claim(self, slot: Slot) -> bool:
        if slot.number != self.current.next_number:
            return False
        self.current = LedgerView((*self.current.slots, slot))
        return True

    def keys(self) -> dict[int, str | None]:
        return {slot.version: slot.key for slot in self.current.slots if slot.version not in self.lost}

    def pruned(self) -> dict[int, bool]:
        self._request()
        return dict(self.marks)

    def lost_weights(self) -> frozenset[int]:
        return frozenset()

    def mark_pruned(self, version: int, *, done: bool) -> None:
        assert version not in self.lost
        self._request()
        self.marks[version] = done

    def delete_weights(self, version: int) -> None:
        self._request()
        self.deleted.add(version)


def test_a_version_that_somebody_deleted_does_not_keep_the_others_from_being_pruned() -> None:
    outside = Outside(ledger_to(4), lost=frozenset({1}))
    assert prune(outside, outside, 2) == [2]


def test_where_nothing_is_pruned_any_more_the_nearest_that_is_left_is_named() -> None:
    outside = Outside(ledger_to(6), marks={1: True, 2: True}, lost=frozenset({3}))
    with pytest.raises(Refused, match="nearest that is kept is version 4, "):
        require_weights(outside.current, 2, outside, 0)


def going_back(outside: Outside, to: int | None, keep: int) -> Iterator[None]:
    """A rollback in its three requests: read the ledger, look for marks, claim."""
    view = outside.current
    made = rollback(view, BY, to=to, block=None)
    yield
    if made is None:
        return
    seen = replace(outside, meanwhile=lambda _: None)
    try:
        require_weights(view, made.version, seen, keep)
    except Refused:
        return
    yield
    outside.claim(made)


def test_of_a_deletion_and_rollbacks_in_any_order_the_champion_keeps_its_weights() -> None:
    """Two rollbacks, of which the second goes to the version that was prunable before the first."""
    ends = set()
    for places in combinations_with_replacement(range(1, 8), 6):
        outside = Outside(ledger_to(3))
        moves = [going_back(outside, None, 2), going_back(outside, 1, 2)]
        steps = [moves[number // 3] for number in range(6)]

        def meanwhile(request: int, *, places: tuple[int, ...] = places, steps: list[Iterator[None]] = steps,
                      outside: Outside = outside) -> None:
            for place, step in zip(places, steps, strict=True):
                if place == request:
                    next(step, None)
                    assert outside.current.slots[-1].version not in outside.deleted

        outside.meanwhile = meanwhile
        prune(outside, outside, 2)
        meanwhile(7)
        champion = outside.current.slots[-1].version
        assert champion not in outside.deleted
        ends.add((champion, tuple(outside.deleted)))
    assert ends >= {(1, ()), (2, (1,))}  # both happened: the rollback came first, and the deletion did
