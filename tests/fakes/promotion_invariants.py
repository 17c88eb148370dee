"""The invariants of the design, over the fakes' World: at every instant, and once the last run has ended."""

from decimal import Decimal

from src.core.records import weighted_score
from src.ledger.slots import LedgerView, Slot
from tests.fakes.promotion_fakes import POLICY, World


class Violation(AssertionError):
    """The protocol broke its promise."""


def check_always(world: World) -> None:
    """What holds at every instant; raises Violation. Reading the view checks numbers, holes and hashes."""
    view = world.view
    for slot in view.slots:
        _require(slot.version <= len(world.versions) and world.versions[slot.version - 1] == slot.key,
                 f"slot {slot.number} names version {slot.version}, which is not its model")
        _require(slot.hub is None or slot.hub.commit in _reachable(world), f"slot {slot.number}: its commit is gone")
        _require(_beats_the_bar(slot.number, view), f"slot {slot.number} was promoted below the bar")
    promoted = [(slot.key, _reign(slot.number, view)) for slot in view.slots if slot.kind == "promote"]
    _require(len(promoted) == len(set(promoted)), "a key was promoted twice")
    for alias in (world.champion, world.previous):
        _require(alias in {None, *(slot.version for slot in view.slots)}, f"an alias names version {alias}")
    _require(world.main in {None, *(slot.key for slot in view.slots)}, "main shows what was never promoted")
    _require(world.slots[: len(world.mirrored)] == world.mirrored, "the mirror is not the ledger")
    _require(len(dict(world.tags)) == len(world.tags), "a tag has two commits")


def check_settled(world: World) -> None:
    """What holds once the last run has ended; raises Violation."""
    view = world.view
    if view.head is None:
        return
    previous = view.previous.version if view.previous else None
    _require(world.champion == view.head.version, f"champion is {world.champion}, not {view.head.version}")
    _require(world.previous == previous, f"previous is {world.previous}, not {previous}")
    _require(world.production == {view.head.version}, f"in Production: {sorted(world.production)}")
    if view.head.hub:
        _require(world.main == view.head.key, "main does not show the champion")
        _require((view.head.version, view.head.hub.commit) in world.tags, "the champion's tag is missing")
        _require(world.mirrored == world.slots, "the mirror lacks slots")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)


def _reachable(world: World) -> set[str]:
    return {commit for _, commit in world.branches} | {commit for _, commit in world.tags}


def _beats_the_bar(number: int, view: LedgerView) -> bool:
    slot, before = view.slots[number - 1], LedgerView(view.slots[: number - 1])
    bars = [_score(other) for other in before.slots
            if other.model_digest in before.promoted_digests and other.model_digest != slot.model_digest]
    return slot.kind != "promote" or not bars or _score(slot) - max(bars) >= POLICY.threshold


def _score(slot: Slot) -> Decimal:
    assert slot.metrics
    return weighted_score(slot.metrics.as_dict(), POLICY.weights)


def _reign(number: int, view: LedgerView) -> int:
    """How many slots so far came without the gate: after a forced one, a model may come through it again."""
    return sum(slot.kind != "promote" for slot in view.slots[:number])
