"""The promotion protocol: explicit steps over a ledger, a registry and a Hub, any of which may fail at any time.

Claiming a ledger slot is the commit point. Nothing is visible before it; everything after it follows from the ledger.
Every step reads the current state of the services and trusts nothing that an earlier run remembered, so the next run
completes an interrupted promotion. Rollback, block and adoption append to the ledger and take the same steps after it.
If the Hub lacks the release of the ledger's head, it is published and recorded by an entry of its own (republish).
docs/promotion.md explains the order.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

from src.core.errors import HubError, RunAgain, Undecided
from src.ledger.ports import Hub, Ledger, Registry
from src.ledger.slots import HubRef, LedgerView, Slot, entries
from src.model_selection import Decision, Verdict

logger = logging.getLogger(__name__)
MAX_ATTEMPTS = 10
REPAIR = "champion status --repair"
T = TypeVar("T")


class Step(StrEnum):
    """The steps in order. SETTLE goes back to the projections until registry and Hub agree with the ledger's head.

    From SETTLE, a head that the Hub lacks goes through REPUBLISH and CLAIM_REPUBLISHED, and then to the projections.
    """

    PREFLIGHT = "preflight"
    RECONCILE = "reconcile"
    DECIDE = "decide"
    ASSEMBLE = "assemble"
    REGISTER = "register"
    PUBLISH = "publish"
    CLAIM = "claim"
    PROJECT_HUB = "project_hub"
    PROJECT_CHAMPION = "project_champion"
    PROJECT_PREVIOUS = "project_previous"
    PROJECT_STAGE = "project_stage"
    SETTLE = "settle"
    REPUBLISH = "republish"
    CLAIM_REPUBLISHED = "claim_republished"
    MIRROR = "mirror"
    RECORD = "record"
    DONE = "done"


# What a step does, for whoever reads where a deployment stopped.
DOING: Mapping[Step, str] = {
    Step.PREFLIGHT: "checking the ledger and the Hub",
    Step.RECONCILE: "completing what an earlier run left",
    Step.DECIDE: "reading the score history and deciding",
    Step.ASSEMBLE: "assembling and verifying the release",
    Step.REGISTER: "registering the version",
    Step.PUBLISH: "publishing the release to the Hub",
    Step.CLAIM: "writing the ledger entry",
    Step.PROJECT_HUB: "showing the champion on the Hub",
    Step.PROJECT_CHAMPION: "moving the alias champion",
    Step.PROJECT_PREVIOUS: "moving the alias previous",
    Step.PROJECT_STAGE: "moving the stage Production",
    Step.SETTLE: "comparing registry and Hub with the ledger",
    Step.REPUBLISH: "publishing the champion again",
    Step.CLAIM_REPUBLISHED: "writing the ledger entry of the new publication",
    Step.MIRROR: "copying the ledger to the Hub",
    Step.RECORD: "writing the records",
}

Journal = Callable[[Step], None]


@dataclass(frozen=True, kw_only=True)
class Services:
    """The services that must agree; hub is None if nothing is pushed.

    republication: makes the ledger entry for a head that was published again; None if this run may not publish it.
    """

    ledger: Ledger
    registry: Registry
    hub: Hub | None
    republication: Callable[[LedgerView, HubRef], Slot] | None = None


@dataclass(frozen=True, kw_only=True)
class Ports(Services):
    """Everything that a promotion uses.

    decide: reads the history and decides. assemble: builds and verifies the release on disk.
    slot: makes the ledger entry of a decision. record: writes the result. key: the promotion key.
    """

    decide: Callable[[LedgerView], Decision]
    assemble: Callable[[Decision], None]
    slot: Callable[[Decision, LedgerView, int, HubRef | None], Slot]
    record: Callable[[Decision, LedgerView], None]
    key: str


@dataclass(frozen=True)
class Progress:
    """The progress of one run.

    step: the next step. view: the ledger as last read. settled: the step after SETTLE, once everything agrees.
    attempts: slots lost to other deployers. rounds: projections that were written and did not agree afterwards.
    lacking: True if SETTLE found that the Hub lacks the head's release. republishes: True if this run publishes it
    then; not before its decision, which may replace the head. republished: the version that this run published again.
    """

    step: Step = Step.PREFLIGHT
    view: LedgerView = field(default_factory=lambda: LedgerView(()))
    settled: Step = Step.MIRROR
    decision: Decision | None = None
    version: int | None = None
    release: HubRef | None = None
    attempts: int = 0
    rounds: int = 0
    lacking: bool = False
    republishes: bool = False
    republished: int | None = None

    @property
    def promoted(self) -> bool:
        """True if this run's slot is in the ledger; at most its copies in registry, Hub and records are missing."""
        deciding = self.decision is not None and self.decision.verdict is Verdict.PROMOTE
        return deciding and self.step in _AFTER_THE_CLAIM

    def decided(self) -> Decision:
        """The decision of this run, which must have made one."""
        return _made(self.decision)


def advance(now: Progress, ports: Ports) -> Progress:
    """Take one step; returns the progress after it."""
    return _STEPS[now.step](now, ports)


def promote(ports: Ports, journal: Journal, start: Progress) -> Progress:
    """Run the protocol to its end; `journal` is called with each step before it is taken.

    Raises RunAgain after ten lost claims, if registry or Hub still differ from the head after ten attempts, and if a
    service fails at the claim or after it. Otherwise it raises whatever the ports raise.
    """
    now = start
    while now.step is not Step.DONE:
        logger.debug("step %s", now.step)
        journal(now.step)
        try:
            now = advance(now, ports)
        except (HubError, Undecided) as error:
            if (pending := _pending(now)) is None:
                raise
            raise RunAgain(f"{pending}: {error}") from error
    return now


def _pending(now: Progress) -> str | None:
    """What is possibly incomplete if the next step fails; None if no slot was sent to the ledger."""
    if now.step is Step.CLAIM:
        return f"version {now.version} may be the champion, because its ledger entry was sent before this error"
    if now.promoted:
        return f"version {now.version} is the champion, but registry or Hub do not show it yet"
    if now.step is Step.CLAIM_REPUBLISHED:
        return "the champion was published again, but the ledger may lack the entry about it"
    if now.republished is not None:
        return f"version {now.republished} was published again, but registry or Hub do not show it yet"
    return None


def append(services: Services, journal: Journal, slot_of: Callable[[LedgerView], Slot | None]
           ) -> tuple[LedgerView, Slot | None]:
    """Append a rollback, block or adoption to the ledger, then run the same projection steps as a promotion.

    slot_of makes the slot from the ledger. It is called again after a lost claim. If it returns None, registry and Hub
    are only made to show the current head. Nothing is reconciled before the claim, because that would show a champion
    which is about to be replaced. Returns the ledger afterwards, and the slot. Raises RunAgain after ten lost claims,
    and if a service fails after the claim. Otherwise it raises whatever slot_of and the services raise.
    """
    for _ in range(MAX_ATTEMPTS):
        view = services.ledger.view()
        slot = slot_of(view)
        if slot is None:
            return reconcile(services, journal, Step.PREFLIGHT), None
        journal(Step.PREFLIGHT)
        _preflight(Progress(), services)
        journal(Step.CLAIM)
        is_champion = "may be"
        try:
            if services.ledger.claim(slot):
                is_champion = "is"
                return reconcile(services, journal, Step.SETTLE), slot
        except (HubError, Undecided) as error:
            raise RunAgain(f"version {slot.version} {is_champion} the champion by ledger entry {slot.number}, but not "
                           f"every service shows it: {error}; run `{REPAIR}`") from error
    raise RunAgain(f"ledger: other deployers wrote the next entry first, {MAX_ATTEMPTS} times in a row; run it again")


def reconcile(services: Services, journal: Journal, start: Step) -> LedgerView:
    """Take the steps from `start` on that make registry, Hub and mirror show the ledger's head; returns the ledger."""
    now = Progress(start, republishes=True)
    while now.step is not Step.DECIDE:
        logger.debug("step %s", now.step)
        journal(now.step)
        try:
            now = _PROJECTING[now.step](now, services)
        except (HubError, Undecided) as error:
            if (pending := _pending(now)) is None:
                raise
            raise RunAgain(f"{pending}: {error}; run `{REPAIR}`") from error
    return now.view


def agree(services: Services) -> bool:
    """True if registry and Hub show the ledger's head."""
    return _settle(Progress(Step.SETTLE, republishes=True), services).step is Step.MIRROR


def _preflight(now: Progress, ports: Services) -> Progress:
    view = ports.ledger.view()  # a deleted or altered ledger is named before the probe writes to it
    ports.ledger.probe()
    if ports.hub:
        ports.hub.check()
        mirrored = ports.hub.mirrored(view)
        if mirrored > len(view.slots) and mirrored > (found := len(ports.ledger.view().slots)):  # read after the mirror
            raise Undecided(f"ledger: its copy on the Hub has {entries(mirrored)} and MLflow has {found}, so MLflow "
                            "lost some, or somebody added to the copy; `champion status` shows which")
    head = view.head
    logger.info("ledger: %s, %s", entries(len(view.slots)), f"the champion is version {head.version}" if head else
                "no champion yet")
    return replace(now, step=Step.RECONCILE)


def _reconcile(now: Progress, _ports: Services) -> Progress:
    return replace(now, step=Step.SETTLE)


def _decide(now: Progress, ports: Ports) -> Progress:
    view = ports.ledger.view()
    decision = ports.decide(view)
    otherwise = Step.SETTLE if now.lacking and ports.republication else Step.RECORD
    step = Step.ASSEMBLE if decision.verdict is Verdict.PROMOTE else otherwise
    return replace(now, step=step, view=view, decision=decision, republishes=True)


def _assemble(now: Progress, ports: Ports) -> Progress:
    ports.assemble(_made(now.decision))
    logger.info("release: assembled and verified")
    return replace(now, step=Step.REGISTER)


def _register(now: Progress, ports: Ports) -> Progress:
    version = ports.registry.register(ports.key)
    logger.info("registry: the model is version %d", version)
    return replace(now, step=Step.PUBLISH, version=version)


def _publish(now: Progress, ports: Ports) -> Progress:
    release = _held(now.view, ports.key, ports)
    if release is None and ports.hub:
        release = ports.hub.publish(ports.key)
    logger.info("Hub: %s", f"the release is in {release.repo}, commit {release.commit[:8]}" if release else
                "not pushed")
    return replace(now, step=Step.CLAIM, release=release)


def _claim(now: Progress, ports: Ports) -> Progress:
    slot = ports.slot(_made(now.decision), now.view, _made(now.version), now.release)
    if ports.ledger.claim(slot):
        logger.info("ledger: wrote entry %d, version %d is the champion from now on", slot.number, slot.version)
        return replace(now, step=Step.PROJECT_HUB, view=LedgerView((*now.view.slots, slot)), lacking=False)
    if now.attempts + 1 == MAX_ATTEMPTS:
        raise RunAgain(f"ledger: other deployers wrote entry {slot.number} first, {MAX_ATTEMPTS} times in a row; run "
                       "it again")
    logger.info("ledger: another deployer wrote entry %d first; deciding again", slot.number)
    return replace(now, step=Step.DECIDE, attempts=now.attempts + 1)


def _project_hub(now: Progress, ports: Services) -> Progress:
    head = _made(now.view.head)
    if not now.lacking and (hub := _hub_of(head, ports)):
        hub.project(head)
        logger.info("Hub: main and the tag v%d show version %d", head.version, head.version)
    return replace(now, step=Step.PROJECT_CHAMPION)


def _project_champion(now: Progress, ports: Services) -> Progress:
    ports.registry.set_alias("champion", _made(now.view.head).version)
    logger.info("registry: alias champion is version %d", _made(now.view.head).version)
    return replace(now, step=Step.PROJECT_PREVIOUS)


def _project_previous(now: Progress, ports: Services) -> Progress:
    previous = now.view.previous
    ports.registry.set_alias("previous", previous.version if previous else None)
    logger.info("registry: alias previous is %s", f"version {previous.version}" if previous else "not set")
    return replace(now, step=Step.PROJECT_STAGE)


def _project_stage(now: Progress, ports: Services) -> Progress:
    ports.registry.set_production(_made(now.view.head).version)
    logger.info("registry: stage Production is version %d, if the server has stages", _made(now.view.head).version)
    return replace(now, step=Step.SETTLE)


def _settle(now: Progress, ports: Services) -> Progress:
    view = ports.ledger.view()
    head = view.head
    if head is None:
        return replace(now, step=now.settled, view=view)
    holders_agree = ports.registry.holders() == ports.registry.expected(head, view.previous)
    hub = _hub_of(head, ports)
    shown = hub is not None and hub.shows(head)
    lacking = ports.hub is not None and not shown and (hub is None or not hub.holds(_made(head.hub)))
    if holders_agree and (shown or lacking or ports.hub is None):
        again = lacking and now.republishes and ports.republication is not None
        if again and now.republished == head.version:
            raise RunAgain(f"version {head.version} was published again, but the Hub does not have it; run it again, "
                           "or `champion status`")
        if not lacking:
            logger.info("%s with the ledger", "registry and Hub: agree" if ports.hub else "registry: agrees")
        return replace(now, step=Step.REPUBLISH if again else now.settled, view=view, rounds=0, lacking=lacking)
    if now.rounds == MAX_ATTEMPTS:
        raise RunAgain(f"version {head.version} is the champion, but registry or Hub do not show it after "
                       f"{MAX_ATTEMPTS} attempts; run it again, or `champion status`")
    return replace(now, step=Step.PROJECT_HUB, view=view, rounds=now.rounds + 1, lacking=lacking)


def _republish(now: Progress, ports: Services) -> Progress:
    release = _held(now.view, _made(now.view.head).key, ports) or _made(ports.hub).republish(now.view)
    return replace(now, step=Step.CLAIM_REPUBLISHED if release else now.settled, release=release)


def _claim_republished(now: Progress, ports: Services) -> Progress:
    release = _made(now.release)
    slot = _made(ports.republication)(now.view, release)
    if ports.ledger.claim(slot):
        logger.info("ledger: wrote entry %d, version %d: %s", slot.number, slot.version, slot.reason)
        return replace(now, step=Step.PROJECT_HUB, view=LedgerView((*now.view.slots, slot)), release=None,
                       lacking=False, republished=slot.version)
    if now.attempts + 1 == MAX_ATTEMPTS:
        raise RunAgain(f"ledger: other deployers wrote entry {slot.number} first, {MAX_ATTEMPTS} times in a row; run "
                       "it again")
    return replace(now, step=Step.SETTLE, release=None, attempts=now.attempts + 1)


def _mirror(now: Progress, ports: Services) -> Progress:
    wanted = now.republishes or not now.lacking  # before the decision, a lost repository is not made for the mirror
    if ports.hub and wanted and any(_hub_of(slot, ports) for slot in now.view.slots):
        ports.hub.mirror(now.view)
        logger.info("Hub: the copy of the ledger has %s", entries(len(now.view.slots)))
    return replace(now, step=Step.RECORD if now.decision else Step.DECIDE)


def _record(now: Progress, ports: Ports) -> Progress:
    ports.record(_made(now.decision), now.view)
    return replace(now, step=Step.DONE)


def _held(view: LedgerView, key: str, ports: Services) -> HubRef | None:
    """The release that this key already has on the Hub. It must be used again, because its tag never moves."""
    known = dict.fromkeys(slot.hub for slot in reversed(view.slots) if slot.key == key and _hub_of(slot, ports))
    return next((release for release in known if release and _made(ports.hub).holds(release)), None)


def _hub_of(slot: Slot, ports: Services) -> Hub | None:
    return ports.hub if ports.hub and slot.hub and slot.hub.repo == ports.hub.repo else None


def _made(value: T | None) -> T:
    if value is None:
        raise AssertionError("a step ran before the one that gives what it needs")
    return value


_AFTER_THE_CLAIM = {Step.PROJECT_HUB, Step.PROJECT_CHAMPION, Step.PROJECT_PREVIOUS, Step.PROJECT_STAGE, Step.SETTLE,
                    Step.REPUBLISH, Step.CLAIM_REPUBLISHED, Step.MIRROR, Step.RECORD}

# The steps that need no decision.
_PROJECTING: Mapping[Step, Callable[[Progress, Services], Progress]] = {
    Step.PREFLIGHT: _preflight,
    Step.RECONCILE: _reconcile,
    Step.PROJECT_HUB: _project_hub,
    Step.PROJECT_CHAMPION: _project_champion,
    Step.PROJECT_PREVIOUS: _project_previous,
    Step.PROJECT_STAGE: _project_stage,
    Step.SETTLE: _settle,
    Step.REPUBLISH: _republish,
    Step.CLAIM_REPUBLISHED: _claim_republished,
    Step.MIRROR: _mirror,
}

_STEPS: Mapping[Step, Callable[[Progress, Ports], Progress]] = {
    **_PROJECTING,
    Step.DECIDE: _decide,
    Step.ASSEMBLE: _assemble,
    Step.REGISTER: _register,
    Step.PUBLISH: _publish,
    Step.CLAIM: _claim,
    Step.RECORD: _record,
}
