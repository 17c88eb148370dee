"""The protocol's outside world in memory: one immutable World, and fakes of Ledger, Registry and Hub over it.

Each request to a service is one `call` of an Outside, atomic and hashable, split where the real one is split: an
alias is read before it is written, and so is who is in Production, before each is archived by a request of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from typing import Any, Protocol

from src.core.errors import IntegrityError
from src.core.params import METRICS
from src.core.records import Metrics, digest_of
from src.ledger.ports import Holders
from src.ledger.slots import HubRef, LedgerView, Slot, parse_slots
from src.model_selection import Decision, Policy, Question, Reason, ScoredRun, decide
from src.promotion.protocol import Ports

REPO = "shop/bot"
CONTRACT = digest_of("contract")
WEIGHTS: dict[str, float] = dict(zip(METRICS, (0.1, 0.15, 0.25, 0.4, 0.1), strict=True))
POLICY = Policy(WEIGHTS, Decimal("0.001"), require_significance=False)
Effect = Callable[["World"], tuple["World", Any]]


@dataclass(frozen=True)
class World:
    """All that is outside of a deployer. Commits and trees are named by the key that they hold."""

    slots: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()  # the key of version 1, 2, ...
    champion: int | None = None
    previous: int | None = None
    production: frozenset[int] = frozenset()
    main: str | None = None
    commits: frozenset[str] = frozenset()
    branches: frozenset[tuple[str, str]] = frozenset()  # key and commit
    tags: frozenset[tuple[int, str]] = frozenset()  # version and commit
    mirrored: tuple[str, ...] = ()
    evaluated: frozenset[str] = frozenset()

    @property
    def view(self) -> LedgerView:
        return view_of(self.slots)

    def __str__(self) -> str:
        slots = [f"{slot.number}: {slot.kind} version {slot.version}" for slot in self.view.slots]
        tags = [(version, commit[:8]) for version, commit in self.tags]
        return (f"slots {slots}, champion {self.champion}, previous {self.previous}, Production "
                f"{set(self.production)}, main {str(self.main)[:8]}, tags {tags}, {len(self.mirrored)} mirrored")


@cache
def view_of(slots: tuple[str, ...]) -> LedgerView:
    return parse_slots(slots)


@dataclass(frozen=True)
class Challenger:
    """One deployer's model, with a score that all five components share; two deployers may bring one model."""

    name: str
    score: float
    force: bool = False
    actor: str = "somebody"

    @property
    def key(self) -> str:
        return digest_of([self.name, CONTRACT])

    @property
    def digest(self) -> str:
        return digest_of(self.name)

    @property
    def run(self) -> ScoredRun:
        metrics = Metrics(**dict.fromkeys(METRICS, self.score))
        return ScoredRun(f"run-{self.name}", self.digest, CONTRACT, metrics, 0)


class Outside(Protocol):
    """Where the calls go."""

    def call(self, name: str, effect: Effect) -> Any:
        """Carry out one request; gives its answer."""


class FakeLedger:
    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    def probe(self) -> None:
        """These cells are write-once."""

    def view(self) -> LedgerView:
        return view_of(self._outside.call("ledger.view", lambda w: (w, w.slots)))

    def claim(self, slot: Slot) -> bool:
        text, place = slot.text(), slot.number - 1

        def write(w: World) -> tuple[World, bool]:
            if place == len(w.slots):
                return replace(w, slots=(*w.slots, text)), True
            return w, w.slots[place] == text

        return bool(self._outside.call("ledger.claim", write))


class FakeRegistry:
    def __init__(self, outside: Outside) -> None:
        self._call = outside.call

    def register(self, key: str) -> int:
        def carrying(w: World) -> tuple[World, int | None]:
            return w, w.versions.index(key) + 1 if key in w.versions else None

        found = self._call("registry.search", carrying)
        if found is None:
            self._call("registry.create", lambda w: (replace(w, versions=(*w.versions, key)), None))
            found = self._call("registry.search", carrying)
        return int(found)

    def holders(self) -> Holders:
        champion, previous = self._call("registry.aliases", lambda w: (w, (w.champion, w.previous)))
        return Holders(champion, previous, self._call("registry.stages", lambda w: (w, w.production)))

    def expected(self, head: Slot, previous: Slot | None) -> Holders:
        return Holders(head.version, previous.version if previous else None, frozenset({head.version}))

    def set_alias(self, alias: str, version: int | None) -> None:
        if self._call("registry.alias", lambda w: (w, getattr(w, alias))) != version:
            self._call(f"registry.set_{alias}", lambda w: (_pointing(w, alias, version), None))

    def set_production(self, version: int) -> None:
        there = self._call("registry.in_production", lambda w: (w, w.production))
        if version not in there:
            self._call("registry.transition", lambda w: (replace(w, production=w.production | {version}), None))
        for other in sorted(there - {version}):
            self._call("registry.archive", _archiving(other))


def _pointing(world: World, alias: str, version: int | None) -> World:
    return replace(world, champion=version) if alias == "champion" else replace(world, previous=version)


def _archiving(version: int) -> Effect:
    return lambda w: (replace(w, production=w.production - {version}), None)


class FakeHub:
    repo = REPO

    def __init__(self, outside: Outside) -> None:
        self._call = outside.call

    def check(self) -> None:
        """This token may do anything."""

    def holds_release(self) -> bool:
        return bool(self._call("hub.holds", lambda w: (w, w.main is not None or bool(w.tags))))

    def publish(self, key: str) -> HubRef:
        def commit(w: World) -> tuple[World, str]:
            if found := dict(w.branches).get(key):
                return w, found
            made = digest_of([key, sum(c.startswith(key[:8]) for c in w.commits)])
            made = key[:8] + made[:32]
            return replace(w, commits=w.commits | {made}, branches=w.branches | {(key, made)}), made

        return HubRef(repo=REPO, commit=self._call("hub.publish", commit), tree=key)

    def project(self, slot: Slot) -> None:
        assert slot.hub
        mark = (slot.version, slot.hub.commit)
        while True:
            main, tags = self._call("hub.look", lambda w: (w, (w.main, dict(w.tags).get(slot.version))))
            if tags not in (None, slot.hub.commit):
                raise IntegrityError(f"tag v{slot.version} is at {tags}, not at {slot.hub.commit}")
            if main == slot.key or self._show(main, slot.key):
                break
        self._call("hub.tag", lambda w: (replace(w, tags=w.tags | {mark}), None))
        self._call("hub.tidy", lambda w: (replace(w, branches=w.branches - {(slot.key, mark[1])}), None))

    def _show(self, parent: str | None, tree: str) -> bool:
        """Compare and swap, by parent_commit."""
        swap = self._call("hub.commit", lambda w: (replace(w, main=tree), True) if w.main == parent else (w, False))
        return bool(swap)

    def shows(self, slot: Slot) -> bool:
        assert slot.hub
        mark = (slot.version, slot.hub.commit)
        return bool(self._call("hub.shows", lambda w: (w, w.main == slot.key and mark in w.tags)))

    def mirror(self, view: LedgerView) -> None:
        texts = tuple(slot.text() for slot in view.slots)
        held = self._call("hub.mirrored", lambda w: (w, w.mirrored))
        while held[: len(texts)] != texts:
            swapped = self._call("hub.mirror", _mirroring(held, texts))
            held = texts if swapped else self._call("hub.mirrored", lambda w: (w, w.mirrored))


def _mirroring(parent: tuple[str, ...], texts: tuple[str, ...]) -> Effect:
    """Compare and swap, by parent_commit."""
    return lambda w: (replace(w, mirrored=texts), True) if w.mirrored == parent else (w, False)


def slot_of(challenger: Challenger, decision: Decision, view: LedgerView, version: int, hub: HubRef | None) -> Slot:
    return Slot(
        number=view.next_number, kind="force" if decision.reason is Reason.FORCED else "promote", key=challenger.key,
        model_digest=challenger.digest, version=version, score=str(decision.score), metrics=challenger.run.metrics,
        contract=CONTRACT, evaluation_run=f"run-{challenger.name}", hub=hub, blocks=[], unblocks=[],
        previous_sha256=view.head_sha256, actor=challenger.actor, reason="test", git_commit="0" * 40, ci_url=None,
        time="2026-11-20T00:00:00+00:00",
    )


def ports_of(challenger: Challenger, known: tuple[Challenger, ...], outside: Outside, *, push: bool = True) -> Ports:
    """The protocol's ports of one deployer; the gate is the real one, over the evaluations in the world."""

    def answer(view: LedgerView) -> Decision:
        evaluated = outside.call("history", lambda w: (w, w.evaluated))
        history = [other.run for other in known if other.name in evaluated]
        return decide(Question(
            challenger=challenger.run, history=history, history_complete=True, ledger=view, policy=POLICY,
            force=challenger.force, may_promote=True, hub_holds_release=False, failed_guard=None, evidence=None,
        ))

    return Ports(
        ledger=FakeLedger(outside), registry=FakeRegistry(outside), hub=FakeHub(outside) if push else None,
        decide=answer, assemble=lambda _decision: None, key=challenger.key,
        slot=lambda decision, view, version, hub: slot_of(challenger, decision, view, version, hub),
        record=lambda _decision, _view: None,
    )
