"""Ledger entries for rollbacks, blocks and adoptions, and which versions keep their weights for a later rollback."""

from dataclasses import dataclass, replace
from typing import Any

from src.core.errors import InvalidParams, Refused
from src.ledger.ports import Ledger, Weights
from src.ledger.slots import PROMOTIONS, HubRef, Kind, LedgerView, Slot


@dataclass(frozen=True)
class Origin:
    """Who adds a ledger entry, why, and from which commit and CI run; time is UTC in ISO 8601, to the second.

    Its fields, and those of UnrecordedChampion, are fields of a slot.
    """

    actor: str
    reason: str
    git_commit: str
    ci_url: str | None
    time: str


@dataclass(frozen=True)
class UnrecordedChampion:
    """A model that is the champion in the registry or on the Hub, but not in the ledger."""

    version: int
    key: str
    model_digest: str
    score: str | None
    contract: str | None
    evaluation_run: str | None
    hub: HubRef | None


def default_target(view: LedgerView) -> Slot:
    """The latest slot of an unblocked model other than the champion. Raises Refused if there is none."""
    head = _head(view)
    if view.previous is None:
        raise Refused(f"version {head.version} is the champion, and before it there is no other model that is not "
                      "blocked; name a blocked one with --to VERSION to take it back, or promote another")
    return view.previous


def rollback(view: LedgerView, origin: Origin, *, to: int | None, block: int | None) -> Slot | None:
    """The slot that makes version `to` the champion again and blocks every later promotion, and also `block`.

    Without `to`, the head is blocked and the default target replaces it. If only another version is to be blocked, the
    head stays. Returns None if the ledger says all of this already. Raises Refused if there is no model to go back to,
    InvalidParams for a version that the ledger does not know.
    """
    head = _head(view)
    blocked = slot_of_version(view, block) if block is not None else head
    if to is not None:
        target = slot_of_version(view, to)
    else:
        target = default_target(view) if blocked.model_digest == head.model_digest else head
    if block is not None and blocked.model_digest == target.model_digest:
        raise InvalidParams(f"--block {block}: is the model to go back to (version {target.version}); give another "
                            "--to, or leave --block out")
    blocks = {block} if block is not None else set()
    if target is not head:  # going back blocks the promotions since; a rollback to an older version is no promotion
        promoted = [slot for slot in view.slots if slot.kind in PROMOTIONS]
        own = max(slot.number for slot in promoted if slot.version == target.version)
        blocks |= {slot.version for slot in promoted if slot.number > own}
    blocks -= {slot.version for slot in view.slots if slot.model_digest == target.model_digest}
    if target.version == head.version and blocks <= view.blocked_versions:
        return None
    return _again(view, target, "rollback", origin, blocks)


def adoption(view: LedgerView, found: UnrecordedChampion, origin: Origin) -> Slot | None:
    """The slot that adds this champion: `genesis` in an empty ledger, else `force`. None if it is the head already.

    Raises Refused if the ledger knows another model by its number.
    """
    head = view.head
    if head and head.version == found.version:
        return None
    known = {slot.key for slot in view.slots if slot.version == found.version}
    if known and found.key not in known:
        raise Refused(f"version {found.version}: is another model in the ledger than in the registry, and blocks name "
                      f"versions; register it again under a number above {max(slot.version for slot in view.slots)}, "
                      "set the alias champion there, and `--adopt` again")
    if known:
        return _again(view, slot_of_version(view, found.version), "force", origin, set())
    return Slot(number=view.next_number, kind="force" if head else "genesis", metrics=None, blocks=[], unblocks=[],
                previous_sha256=view.head_sha256, **vars(found), **vars(origin))


def republication(view: LedgerView, release: HubRef, origin: Origin) -> Slot:
    """The slot that repeats the head with its new release on the Hub. Its reason replaces the origin's."""
    head = _head(view)
    reason = f"published to {release.repo}; before, it was {_unpublished(head, release)}"
    return head.model_copy(update={
        "number": view.next_number, "kind": "republish", "hub": release, "blocks": [], "unblocks": [],
        "previous_sha256": view.head_sha256, **vars(replace(origin, reason=reason))})


def _unpublished(head: Slot, release: HubRef) -> str:
    if head.hub is None:
        return "not on the Hub"
    return "lost there" if head.hub.repo == release.repo else f"only at {head.hub.repo}"


def slot_of_version(view: LedgerView, version: int) -> Slot:
    """The latest slot of a version. Raises InvalidParams if the version was never promoted."""
    slots = {slot.version: slot for slot in view.slots}
    if version not in slots:
        raise InvalidParams(f"version {version}: was never promoted; the ledger knows "
                            f"{', '.join(map(str, sorted(slots))) or 'none'}")
    return slots[version]


def info(view: LedgerView, slot: Slot | None, *, model_name: str, result: str) -> dict[str, Any]:
    """The content of deployment_info.json after a rollback, block, adoption or repair.

    slot: the entry that it added, None if it added none.
    """
    head, previous = view.head, view.previous
    return {
        "result": result,
        "code": 0,
        "reason": slot.kind if slot else result,
        "model_name": model_name,
        "champion": {"version": head.version, "score": head.score, "key": head.key} if head else None,
        "previous_version": previous.version if previous else None,
        "blocked_versions": sorted(view.blocked_versions),
        "ledger_slot": head.number if head else None,
        "hub": head.hub.model_dump() if head and head.hub else None,
        "actor": slot.actor if slot else None,
        "stated_reason": slot.reason if slot else None,
    }


def kept(view: LedgerView, keep: int) -> frozenset[int]:
    """Versions whose weights stay: the last `keep` champions, blocked or not, and always head and previous."""
    latest = list(dict.fromkeys(slot.version for slot in reversed(view.slots)))
    return frozenset(latest[:keep]) | {slot.version for slot in (view.head, view.previous) if slot}


def prunable(view: LedgerView, keep: int) -> frozenset[int]:
    """Versions whose weights may be deleted; none if `keep` is 0. Adopted models are always kept."""
    made = frozenset(slot.version for slot in view.slots if slot.metrics is not None)
    return made - kept(view, keep) if keep else frozenset()


def prune(ledger: Ledger, weights: Weights, keep: int) -> list[int]:
    """Delete the weights of prunable versions; returns these versions. It can be repeated safely at any time.

    Raises Undecided if a service fails; the next call deletes the rest. Versions that somebody deleted are skipped.
    """
    done = []
    marks, there = weights.pruned(), weights.keys()
    for version in sorted(prunable(ledger.view(), keep) & there.keys()):
        if not marks.get(version):
            weights.mark_pruned(version, done=False)
            if version in prunable(ledger.view(), keep):
                weights.delete_weights(version)
                weights.mark_pruned(version, done=True)
                done.append(version)
    return done


def require_weights(view: LedgerView, version: int, weights: Weights, keep: int) -> None:
    """Raise Refused if a version's weights are lost, deleted or prunable, naming the nearest version that has some."""
    lost = weights.lost_weights()
    gone = weights.pruned().keys() | prunable(view, keep) | lost
    if version not in gone:
        return
    there = ({slot.version for slot in view.slots} & weights.keys().keys()) - gone
    there -= {view.head.version} if view.head else set()
    nearest = min(there, key=lambda other: abs(other - version), default=None)
    advice = f"the nearest that is kept is version {nearest}" if nearest else "no other version's are kept"
    if version in lost:
        raise Refused(f"version {version}: its weights are not in this MLflow store, which was restored without them; "
                      f"{advice}")
    raise Refused(f"version {version}: its weights were pruned (deployment.keep_versions: {keep}); {advice}, and "
                  "`champion history --promote RUN` merges a pruned one anew")


def _head(view: LedgerView) -> Slot:
    if view.head is None:
        raise Refused("nothing was ever promoted, so there is nothing to go back to or to block")
    return view.head


def _again(view: LedgerView, old: Slot, kind: Kind, origin: Origin, blocks: set[int]) -> Slot:
    """Repeat the slot of an older version, with the last release that this version had on the Hub."""
    released = (slot.hub for slot in reversed(view.slots) if slot.version == old.version and slot.hub)
    return old.model_copy(update={
        "number": view.next_number, "kind": kind, "hub": next(released, None), "blocks": sorted(blocks),
        "unblocks": [old.version] if old.version in view.blocked_versions else [],
        "previous_sha256": view.head_sha256, **vars(origin),
    })
