"""The models in the order in which they were promoted, or evaluated if they never were. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from src.core.records import weighted_score
from src.ledger.slots import PROMOTIONS, LedgerView, Slot
from src.model_selection import ScoredRun


@dataclass(frozen=True)
class Entry:
    """One model under today's score contract, with its latest evaluation.

    time: when it was first promoted; if it never was, when it was evaluated. UTC.
    version: its version in the registry, None if it was never promoted.
    is_rescored: True for a promoted model whose score is from a later evaluation than the one that promoted it.
    """

    run_id: str
    time: datetime
    score: float
    version: int | None
    is_challenger: bool
    is_champion: bool
    is_blocked: bool
    is_rescored: bool

    @property
    def remarks(self) -> str:
        """What is to be known about it, in words."""
        parts = {"this model": self.is_challenger, "champion": self.is_champion, "blocked by a rollback":
                 self.is_blocked, "scored again after its promotion": self.is_rescored}
        return ", ".join(words for words, holds in parts.items() if holds)


def entries(runs: Sequence[ScoredRun], ledger: LedgerView, weights: Mapping[str, float], challenger: str
            ) -> list[Entry]:
    """The models in order. challenger: the digest of the model that the report is about.

    A champion that is scored again on new data keeps the place of its promotion. In the order of the evaluations it
    would come after its successors, and progress would look like a fall.
    """
    promoted: dict[str, Slot] = {}
    for slot in ledger.slots:
        if slot.kind in PROMOTIONS:
            promoted.setdefault(slot.model_digest, slot)
    versions = {slot.model_digest: slot.version for slot in ledger.slots}
    judged = {slot.evaluation_run for slot in ledger.slots}
    latest = {run.model_digest: run for run in sorted(runs, key=lambda run: run.finished_at)}

    def entry(digest: str, run: ScoredRun) -> Entry:
        slot = promoted.get(digest)
        time = datetime.fromisoformat(slot.time) if slot else datetime.fromtimestamp(run.finished_at / 1000, UTC)
        return Entry(
            run.run_id, time.astimezone(UTC), float(weighted_score(run.metrics.as_dict(), weights)),
            versions.get(digest), digest == challenger, is_champion=ledger.head is not None
            and digest == ledger.head.model_digest, is_blocked=digest in ledger.blocked_digests,
            is_rescored=slot is not None and run.run_id not in judged)

    numbers = {digest: slot.number for digest, slot in promoted.items()}
    made = [(numbers.get(digest, 0), entry(digest, run)) for digest, run in latest.items()]
    return [each for _, each in sorted(made, key=lambda pair: (pair[1].time, pair[0], pair[1].run_id))]


def promoted_elsewhere(found: Sequence[Entry], ledger: LedgerView) -> list[int]:
    """The versions that were promoted and have no score under today's contract and weights."""
    shown = {entry.version for entry in found}
    versions = {slot.model_digest: slot.version for slot in ledger.slots}
    return sorted(version for version in versions.values() if version not in shown)
