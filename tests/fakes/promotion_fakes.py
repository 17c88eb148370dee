"""The protocol's outside world in memory: one immutable World, and fakes of Ledger, Registry and Hub over it.

Each request to a service is one `call` of an Outside, atomic and hashable, split where the real one is split: an
alias is read before it is written, and so is who is in Production, before each is archived by a request of its own.
Then the invariants of the design over the World.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from typing import Any, Protocol

from src.core.errors import IntegrityError
from src.core.records import digest_of, weighted_score
from src.ledger.ports import Holders
from src.ledger.slots import HubRef, LedgerView, Slot, parse_slots
from src.model_selection import Decision, Reason, ScoredRun, decide
from src.promotion.protocol import Ports
from src.promotion.rollback import Origin, republication
from tests.fakes import factories

REPO = "shop/bot"
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
    lost: frozenset[str] = frozenset()  # commits that went with a repository that somebody deleted

    @property
    def view(self) -> LedgerView:
        return view_of(self.slots)

    def __str__(self) -> str:
        slots = [f"{slot.number}: {slot.kind} version {slot.version}" for slot in self.view.slots]
        tags = [(version, commit[:8]) for version, commit in self.tags]
        return (f"slots {slots}, champion {self.champion}, previous {self.previous}, Production "
                f"{set(self.production)}, main {str(self.main)[:8]}, tags {tags}, {len(self.mirrored)} mirrored")


def without_repository(world: World) -> World:
    """The world after somebody deleted the Hub repository."""
    return replace(world, main=None, branches=frozenset(), tags=frozenset(), mirrored=(), lost=world.commits)


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
        return digest_of([self.name, factories.CONTRACT])

    @property
    def run(self) -> ScoredRun:
        return factories.run(self.name, self.score)


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
            change: dict[str, Any] = {alias: version}
            self._call(f"registry.set_{alias}", lambda w: (replace(w, **change), None))

    def set_production(self, version: int) -> None:
        there = self._call("registry.in_production", lambda w: (w, w.production))
        if version not in there:
            self._call("registry.transition", lambda w: (replace(w, production=w.production | {version}), None))
        for other in sorted(there - {version}):
            self._archive(other)

    def _archive(self, version: int) -> None:
        self._call("registry.archive", lambda w: (replace(w, production=w.production - {version}), None))


class FakeHub:
    repo = REPO

    def __init__(self, outside: Outside) -> None:
        self._call = outside.call

    def check(self) -> None:
        """This token may do anything."""

    def holds_release(self) -> bool:
        return bool(self._call("hub.holds", lambda w: (w, w.main is not None or bool(w.tags))))

    def mirrored(self, view: LedgerView) -> int:
        return len(view.slots)  # nobody else's repository, and no store that lost slots

    def publish(self, key: str) -> HubRef:
        def commit(w: World) -> tuple[World, str]:
            if found := dict(w.branches).get(key):
                return w, found
            made = digest_of([key, sum(c.startswith(key[:8]) for c in w.commits)])
            made = key[:8] + made[:32]
            return replace(w, commits=w.commits | {made}, branches=w.branches | {(key, made)}), made

        return HubRef(repo=self.repo, commit=self._call("hub.publish", commit), tree=key)

    def holds(self, release: HubRef) -> bool:
        return bool(self._call("hub.holds_commit", lambda w: (w, release.commit in _reachable(w))))

    def republish(self, view: LedgerView) -> HubRef | None:
        assert view.head
        return self.publish(view.head.key)

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


def ports_of(challenger: Challenger, known: tuple[Challenger, ...], outside: Outside, *, push: bool = True) -> Ports:
    """The protocol's ports of one deployer; the gate is the real one, over the evaluations in the world."""

    def answer(view: LedgerView) -> Decision:
        evaluated = outside.call("history", lambda w: (w, w.evaluated))
        history = [other.run for other in known if other.name in evaluated]
        return decide(factories.question(challenger.run, history, view, force=challenger.force))

    def slot(decision: Decision, view: LedgerView, version: int, hub: HubRef | None) -> Slot:
        return factories.slot(view, challenger.name, challenger.score, version=version, hub=hub, actor=challenger.actor,
                              kind="force" if decision.reason is Reason.FORCED else "promote")

    return Ports(
        ledger=FakeLedger(outside), registry=FakeRegistry(outside), hub=FakeHub(outside) if push else None,
        decide=answer, assemble=lambda _decision: None, key=challenger.key, slot=slot,
        record=lambda _decision, _view: None,
        republication=lambda view, release: republication(view, release, origin(challenger.actor)))


def origin(actor: str) -> Origin:
    return Origin(actor, "a bug", "0" * 40, None, "2026-11-20T00:00:00+00:00")


# The invariants of the design: at every instant, and once the last run has ended.


class Violation(AssertionError):
    """The protocol broke its promise."""


def check_always(world: World) -> None:
    """What holds at every instant; raises Violation. Reading the view checks numbers, holes and hashes."""
    view = world.view
    for slot in view.slots:
        _require(slot.version <= len(world.versions) and world.versions[slot.version - 1] == slot.key,
                 f"slot {slot.number} names version {slot.version}, which is not its model")
        _require(slot.hub is None or slot.hub.commit in _reachable(world) | world.lost,
                 f"slot {slot.number}: its commit is gone")
        _require(slot.kind != "republish" or slot.key == view.slots[slot.number - 2].key,
                 f"slot {slot.number} is no new release of the model before it")
        _require(_beats_the_bar(slot.number, view), f"slot {slot.number} was promoted below the bar")
    promoted = [(slot.key, _reign(slot.number, view)) for slot in view.slots if slot.kind == "promote"]
    _require(len(promoted) == len(set(promoted)), "a key was promoted twice")
    for alias in (world.champion, world.previous):
        _require(alias in {None, *(slot.version for slot in view.slots)}, f"an alias names version {alias}")
    _require(world.main in {None, *(slot.key for slot in view.slots)}, "main shows what was never promoted")
    _require(world.slots[: len(world.mirrored)] == world.mirrored, "the mirror is not the ledger")
    _require(len(dict(world.tags)) == len(world.tags), "a tag has two commits")


def check_settled(world: World, *, pushed: bool = False) -> None:
    """What holds once the last run has ended, and where every run pushed; raises Violation."""
    view = world.view
    if view.head is None:
        return
    previous = view.previous.version if view.previous else None
    _require(world.champion == view.head.version, f"champion is {world.champion}, not {view.head.version}")
    _require(world.previous == previous, f"previous is {world.previous}, not {previous}")
    _require(world.production == {view.head.version}, f"in Production: {sorted(world.production)}")
    _require(not pushed or (view.head.hub is not None and view.head.hub.commit in _reachable(world)),
             "the champion is not on the Hub")
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
    return slot.kind != "promote" or not bars or _score(slot) - max(bars) >= factories.POLICY.threshold


def _score(slot: Slot) -> Decimal:
    assert slot.metrics
    return weighted_score(slot.metrics.as_dict(), factories.POLICY.weights)


def _reign(number: int, view: LedgerView) -> int:
    """How many slots so far came without the gate: after a forced one, a model may come through it again."""
    return sum(slot.kind not in ("promote", "republish") for slot in view.slots[:number])
