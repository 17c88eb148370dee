"""The ledger: numbered, write-once slots in a hash chain. Its head is the champion; everything else follows from it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from src.core.errors import IntegrityError
from src.core.params import first_problem
from src.core.records import Digest, Metrics, Record, canonical_json

MAX_CHARACTERS = 6000  # MLflow silently truncates a longer param
NO_SLOT = "0" * 64  # the previous hash of the first slot
_REMEDY = "the ledger was altered; run `champion status`"

Kind = Literal["promote", "force", "rollback", "genesis", "republish"]
# The kinds that bring a new champion. A rollback takes an older one back, republish repeats the head for the Hub.
PROMOTIONS = frozenset[Kind]({"promote", "force", "genesis"})


class HubRef(Record):
    """A verified Hub commit; tree is the digest of its files (tree_digest) without .gitattributes."""

    repo: str
    commit: str
    tree: Digest


class Slot(Record):
    """One ledger entry: a promotion, rollback, block or adoption, or the head again with its new Hub commit.

    version: the number in the model registry.
    """

    number: Annotated[int, Field(ge=1)]
    kind: Kind
    key: Digest
    model_digest: Digest
    version: Annotated[int, Field(ge=1)]
    score: str | None  # decimal text, under the weights of that day; `metrics` has what it was computed from
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
        """The slot as it is stored. Raises IntegrityError if it is too long."""
        text = canonical_json(self.model_dump(mode="json"))
        if len(text) >= MAX_CHARACTERS:
            raise IntegrityError(f"ledger slot {self.number}: {len(text)} characters, {MAX_CHARACTERS} fit")
        return text

    def sha256(self) -> str:
        """The hash that the next slot stores as previous_sha256."""
        return hashlib.sha256(self.text().encode()).hexdigest()


@dataclass(frozen=True)
class LedgerView:
    """The slots, oldest first, and what follows from them."""

    slots: tuple[Slot, ...]

    @property
    def head(self) -> Slot | None:
        """The slot of the champion, None before the first promotion."""
        return self.slots[-1] if self.slots else None

    @property
    def standing(self) -> Slot | None:
        """The slot that made the head the champion; the head itself, unless it was only published again."""
        return next((slot for slot in reversed(self.slots) if slot.kind != "republish"), None)

    @property
    def next_number(self) -> int:
        """The number of the next slot."""
        return len(self.slots) + 1

    @property
    def head_sha256(self) -> str:
        """The hash that the next slot stores as previous_sha256."""
        return self.slots[-1].sha256() if self.slots else NO_SLOT

    @property
    def blocked_digests(self) -> frozenset[str]:
        """Digests of models that a rollback blocked and no later slot unblocked; a promotion unblocks its model.

        These are models, not versions: a model that was promoted under two score contracts has two versions.
        """
        digests = {slot.version: slot.model_digest for slot in self.slots}
        blocked: set[str] = set()
        for slot in self.slots:
            blocked |= {digests[version] for version in slot.blocks if version in digests}
            blocked -= {digests[version] for version in slot.unblocks if version in digests} | {slot.model_digest}
        return frozenset(blocked)

    @property
    def blocked_versions(self) -> frozenset[int]:
        """The versions of the blocked models."""
        blocked = self.blocked_digests
        return frozenset(slot.version for slot in self.slots if slot.model_digest in blocked)

    @property
    def promoted_digests(self) -> frozenset[str]:
        """Digests of models that were promoted and are not blocked: the candidates for best promoted."""
        return frozenset(slot.model_digest for slot in self.slots) - self.blocked_digests

    @property
    def previous(self) -> Slot | None:
        """The latest slot before the head of another, unblocked model: the default target of a rollback."""
        if self.head is None:
            return None
        older = (s for s in reversed(self.slots[:-1]) if s.model_digest != self.head.model_digest)
        return next((slot for slot in older if slot.version not in self.blocked_versions), None)


def slot_name(number: int) -> str:
    """The name under which a slot is stored: s00000001, s00000002, ..."""
    return f"s{number:08d}"


def entries(count: int) -> str:
    """A number of slots, as a person says it: `1 entry`."""
    return f"{count} entr{'y' if count == 1 else 'ies'}"


def parse_slots(texts: Sequence[str]) -> LedgerView:
    """The view of stored slots, oldest first. Raises IntegrityError if a slot is invalid or the chain is broken."""
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
