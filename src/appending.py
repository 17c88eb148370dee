"""Slots that no challenger brings: rollbacks, blocks, adoptions. What follows a claim is the promotion's own steps."""

from collections.abc import Callable

from src.errors import HubError, RunAgain, Undecided
from src.ledger import LedgerView, Slot
from src.promotion import FOLLOWING, MAX_ATTEMPTS, Progress, Services, Step

Journal = Callable[[Step], None]


def append(
    services: Services, journal: Journal, slot_of: Callable[[LedgerView], Slot | None]
) -> tuple[LedgerView, Slot | None]:
    """Claim the slot that slot_of makes of the ledger, and make all else follow; returns the ledger after it, and it.

    Nothing is reconciled before the claim: that would show a champion which is about to be replaced. slot_of is asked
    anew after a lost claim; where it gives None all is made to follow the head that stands. Raises RunAgain after ten
    lost claims and when a service fails after the claim, else whatever slot_of and the services raise.
    """
    for _ in range(MAX_ATTEMPTS):
        view = services.ledger.view()
        slot = slot_of(view)
        if slot is None:
            return reconcile(services, journal, Step.PREFLIGHT), None
        _take(Step.PREFLIGHT, services, journal)
        journal(Step.CLAIM)
        stands = "may stand: then"
        try:
            if services.ledger.claim(slot):
                stands = "stands:"
                return reconcile(services, journal, Step.SETTLE), slot
        except (HubError, Undecided) as error:
            raise RunAgain(f"slot {slot.number} {stands} version {slot.version} is the champion, but not all shows "
                           f"it: {error}; settle it by `{REPAIR}`") from error
    raise RunAgain(f"ledger: lost a slot to another deployer, {MAX_ATTEMPTS} times; run it again")


def reconcile(services: Services, journal: Journal, start: Step) -> LedgerView:
    """From this step on, make registry, Hub and mirror show the ledger's head; returns the ledger."""
    now = Progress(start)
    while now.step is not Step.DECIDE:
        journal(now.step)
        now = FOLLOWING[now.step](now, services)
    return now.view


def agree(services: Services) -> bool:
    """Whether registry and Hub show the ledger's head."""
    return FOLLOWING[Step.SETTLE](Progress(Step.SETTLE), services).step is Step.MIRROR


def _take(step: Step, services: Services, journal: Journal) -> None:
    journal(step)
    FOLLOWING[step](Progress(step), services)


REPAIR = "python scripts/status_script.py --repair"
