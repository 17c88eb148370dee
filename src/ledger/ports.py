"""What the promotion protocol works on, as Protocols: utils implement them, and so do the fakes of its tests."""

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
        """Prove that a slot cannot be overwritten; raises Undecided."""

    def view(self) -> LedgerView:
        """All slots as they are now; raises Undecided or IntegrityError."""

    def claim(self, slot: Slot) -> bool:
        """Write a slot; False when its number was taken by another record."""


@dataclass(frozen=True)
class Holders:
    """Which versions the registry shows: both aliases and every version in stage Production."""

    champion: int | None
    previous: int | None
    production: frozenset[int]


class Registry(Protocol):
    """Numbered model versions with aliases and stages."""

    def register(self, key: str) -> int:
        """The version that carries this key, made if there is none."""

    def holders(self) -> Holders:
        """The aliases and stages as they are now."""

    def set_alias(self, alias: str, version: int | None) -> None:
        """Point an alias to a version, or remove it."""

    def set_production(self, version: int) -> None:
        """Put a version in Production and archive every other that is there."""

    def expected(self, head: Slot, previous: Slot | None) -> Holders:
        """What holders() gives once it shows this head (a server without stages shows none)."""


class Weights(Protocol):
    """The files of registered versions, apart from their records."""

    def keys(self) -> Mapping[int, str | None]:
        """Every version that is there, and the promotion key that it carries."""

    def pruned(self) -> Mapping[int, bool]:
        """Versions that are marked as pruned: whether all their weights are gone, or only some."""

    def mark_pruned(self, version: int, *, done: bool) -> None:
        """Mark a version; never taken back."""

    def delete_weights(self, version: int) -> None:
        """Delete what is left of a version's files."""


class Hub(Protocol):
    """One model repository."""

    @property
    def repo(self) -> str:
        """Its id, owner/name; slots that were published elsewhere are left alone."""

    def check(self) -> None:
        """Token, scopes and server; raises HubError or InvalidParams."""

    def holds_release(self) -> bool:
        """Whether main holds a release of Champion, known to this ledger or not."""

    def publish(self, key: str) -> HubRef:
        """The release as one verified commit on a branch of its own; nothing visible on main."""

    def project(self, slot: Slot) -> None:
        """Main shows the slot's tree, its tag the slot's commit; the release branch goes."""

    def shows(self, slot: Slot) -> bool:
        """Whether main and tag agree with a slot."""

    def mirror(self, view: LedgerView) -> None:
        """Copy the slots beside the releases, for the day the tracking server is lost."""


@dataclass(frozen=True)
class HubState:
    """The repository as it is now: main's commit and tree digest (None: no repository, or no file in it), refs."""

    head: str | None
    tree: str | None
    tags: dict[str, str]
    branches: dict[str, str]
