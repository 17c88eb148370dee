"""Protocols for the services of a promotion: ledger, registry, weights and Hub. utils implements them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from src.ledger.slots import HubRef, LedgerView, Slot

MANIFEST = "manifest.json"  # in every Champion release, at its top level
LEDGER_BRANCH = "ledger"
LEDGER_FILE = "ledger.jsonl"


class Ledger(Protocol):
    """Write-once slots; the first writer of a number wins."""

    def probe(self) -> None:
        """Check that a stored slot cannot be overwritten. Raises Undecided if it can, or without an answer."""

    def view(self) -> LedgerView:
        """All slots as they are now. Raises Undecided or IntegrityError."""

    def claim(self, slot: Slot) -> bool:
        """Write a slot; returns False if its number is taken by another slot."""


@dataclass(frozen=True)
class Holders:
    """The versions that have the two aliases, and every version in stage Production."""

    champion: int | None
    previous: int | None
    production: frozenset[int]


class Registry(Protocol):
    """Numbered model versions with aliases and stages."""

    def register(self, key: str) -> int:
        """The version with this promotion key; it is created if there is none."""

    def holders(self) -> Holders:
        """The aliases and stages as they are now."""

    def set_alias(self, alias: str, version: int | None) -> None:
        """Point an alias to a version, or remove it."""

    def set_production(self, version: int) -> None:
        """Put a version in Production and archive every other that is there."""

    def expected(self, head: Slot, previous: Slot | None) -> Holders:
        """What `holders` returns once it shows this head; Production is empty on a server without stages."""


class Weights(Protocol):
    """The files of registered versions."""

    def keys(self) -> Mapping[int, str | None]:
        """The promotion key of every registered version, None for a version without one."""

    def pruned(self) -> Mapping[int, bool]:
        """The versions that are marked as pruned; True if all their weights are deleted, False if only some."""

    def lost_weights(self) -> frozenset[int]:
        """The versions that were restored in a new registry without their weights."""

    def mark_pruned(self, version: int, *, done: bool) -> None:
        """Mark a version as pruned; the mark is never removed."""

    def delete_weights(self, version: int) -> None:
        """Delete the remaining files of a version."""


class Hub(Protocol):
    """One model repository."""

    @property
    def repo(self) -> str:
        """The repository's id, owner/name; slots that were published to another repository are ignored."""

    def check(self) -> None:
        """Check the token, its rights and the server. Raises HubError or InvalidParams."""

    def holds_release(self) -> bool:
        """True if main holds a release of Champion, known to this ledger or not."""

    def mirrored(self, view: LedgerView) -> int:
        """The number of slots in the mirror, 0 if there is none. A longer mirror begins with the ledger's slots.

        Raises IntegrityError if the repository holds the releases of another ledger.
        """

    def publish(self, key: str) -> HubRef:
        """Upload the release as one verified commit on its own branch; main does not change."""

    def holds(self, release: HubRef) -> bool:
        """True if the repository still has this release's commit."""

    def republish(self, view: LedgerView) -> HubRef | None:
        """Upload the head's release again, as `publish` does; None, with a warning, if it cannot be made again.

        Raises IntegrityError if the repository holds the releases of another ledger.
        """

    def project(self, slot: Slot) -> None:
        """Make main show the slot's tree and its tag the slot's commit, and delete the release branch."""

    def shows(self, slot: Slot) -> bool:
        """True if main and tag show this slot, and its release branch is deleted."""

    def mirror(self, view: LedgerView) -> None:
        """Copy the ledger to the Hub, so that it can be restored if the tracking server is lost."""


@dataclass(frozen=True)
class HubState:
    """The repository as it is now.

    head, tree: main's commit and tree digest, None if there is no repository or no file in it.
    tags, branches: name to commit.
    """

    head: str | None
    tree: str | None
    tags: dict[str, str]
    branches: dict[str, str]
