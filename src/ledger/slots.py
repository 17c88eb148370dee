"""The ledger: numbered, write-once slots, chained by hashes. Its head is the champion; all else is derived."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from src.core.errors import IntegrityError
from src.core.params import first_problem
from src.core.records import Digest, Metrics, Record, canonical_json

MAX_CHARACTERS = 6000  # MLflow silently truncates a longer param
NO_SLOT = "0" * 64

Kind = Literal["promote", "force", "rollback", "genesis"]


class HubRef(Record):
    """A verified Hub commit; tree is the digest of its files (tree_digest) without .gitattributes."""

    repo: str
    commit: str
    tree: Digest


class Slot(Record):
    """One promotion. version is the registry's number (its own count where there is no registry)."""

    number: Annotated[int, Field(ge=1)]
    kind: Kind
    key: Digest
    model_digest: Digest
    version: Annotated[int, Field(ge=1)]
    score: str | None  # decimal text under the weights of the day; the components are the truth
    metrics: Metrics | None
    contract: str | None
    evaluation_run: str | None
    hub: HubRef | None
    blocks: list[int]
    unblocks: list[int]
    previous_sha256: Digest
    actor: str
    reason: str
    git_commit: str
    ci_url: str | None
    time: str

    def text(self) -> str:
        """The slot as it is stored; raises IntegrityError where it would not fit."""
        text = canonical_json(self.model_dump(mode="json"))
        if len(text) >= MAX_CHARACTERS:
            raise IntegrityError(f"ledger slot {self.number}: {len(text)} characters, {MAX_CHARACTERS} fit")
        return text

    def sha256(self) -> str:
        """The hash that the next slot repeats."""
        return hashlib.sha256(self.text().encode()).hexdigest()


@dataclass(frozen=True)
class LedgerView:
    """What follows from the slots, oldest first."""

    slots: tuple[Slot, ...]

    @property
    def head(self) -> Slot | None:
        """The champion's slot, None before the first promotion."""
        return self.slots[-1] if self.slots else None

    @property
    def next_number(self) -> int:
        """The number that the next claim takes."""
        return len(self.slots) + 1

    @property
    def head_sha256(self) -> str:
        """What the next slot stores as its previous hash."""
        return self.slots[-1].sha256() if self.slots else NO_SLOT

    @property
    def blocked_digests(self) -> frozenset[str]:
        """Models that a rollback blocked and no later slot unblocked; a promoted model is unblocked by that.

        Models, not versions: one that was promoted under two score contracts is two versions of one model.
        """
        digests = {slot.version: slot.model_digest for slot in self.slots}
        blocked: set[str] = set()
        for slot in self.slots:
            blocked |= {digests[version] for version in slot.blocks if version in digests}
            blocked -= {digests[version] for version in slot.unblocks if version in digests} | {slot.model_digest}
        return frozenset(blocked)

    @property
    def blocked_versions(self) -> frozenset[int]:
        """Versions of the blocked models."""
        blocked = self.blocked_digests
        return frozenset(slot.version for slot in self.slots if slot.model_digest in blocked)

    @property
    def promoted_digests(self) -> frozenset[str]:
        """Model digests that stand in an unblocked slot: the candidates for the best promoted bar."""
        return frozenset(slot.model_digest for slot in self.slots) - self.blocked_digests

    @property
    def previous(self) -> Slot | None:
        """The latest unblocked slot of another version before the head: where a rollback goes by default."""
        if self.head is None:
            return None
        older = (s for s in reversed(self.slots[:-1]) if s.model_digest != self.head.model_digest)
        return next((slot for slot in older if slot.version not in self.blocked_versions), None)


def slot_name(number: int) -> str:
    """The name of a slot's cell: s00000001, s00000002, ..."""
    return f"s{number:08d}"


def parse_slots(texts: Sequence[str]) -> LedgerView:
    """The view of stored slots, oldest first; raises IntegrityError where the chain is broken."""
    slots: list[Slot] = []
    for number, text in enumerate(texts, start=1):
        try:
            slot = Slot.model_validate_json(text)
        except ValidationError as error:
            raise IntegrityError(f"ledger slot {number}: {first_problem(error)}; {_REMEDY}") from None
        expected = slots[-1].sha256() if slots else NO_SLOT
        if slot.number != number or slot.previous_sha256 != expected:
            raise IntegrityError(f"ledger slot {number}: does not continue slot {number - 1}; {_REMEDY}")
        slots.append(slot)
    return LedgerView(tuple(slots))


_REMEDY = "the ledger was altered; run `python scripts/status_script.py`"
