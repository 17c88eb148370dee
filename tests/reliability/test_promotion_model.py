"""Every interleaving of several deployers that crash: no invariant of the design is ever broken.

And the model is worth something: of a protocol that lacks one of its precautions it says how it breaks.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest

from src.promotion import protocol
from src.promotion.protocol import Ports, Progress, Step
from tests.fakes.promotion_fakes import Challenger, FakeHub, FakeLedger, Violation, World, without_repository
from tests.fakes.promotion_line import CHAMPION, deployed
from tests.reliability.promotion_model import Actor, Model, Rollback

A, B, C = Challenger("a", 0.5), Challenger("b", 0.6), Challenger("c", 0.7)
NEAR_A = Challenger("near a", 0.5005)
TWIN = replace(A, actor="somebody else")
FORCED = Challenger("forced", 0.3, force=True)
CROWNED = deployed(CHAMPION)

# A step is one move; but who is in Production is read first, and each is moved by a request of its own.
STEPS = frozenset({"registry.transition", "registry.archive"})
EVERY_REQUEST = None

SMALL: list[tuple[str, tuple[Actor, ...], int, World]] = [
    ("two rivals", (A, B), 2, World()),
    ("two rivals and a champion", (A, B), 1, CROWNED),
    ("two of one score", (A, Challenger("tie", 0.5)), 2, World()),
    ("two within the threshold", (A, NEAR_A), 2, CROWNED),
    ("one model twice", (A, TWIN), 2, CROWNED),
    ("one model twice in the same second", (A, A), 2, World()),
    ("a forced worse model and the champion again", (FORCED, CHAMPION), 1, CROWNED),
    ("the champion alone", (CHAMPION,), 3, CROWNED),
    ("a rollback and the model that it blocks", (Rollback(to=1), A), 1, deployed(CHAMPION, A)),
    ("a rollback and a better model", (Rollback(to=1), B), 0, deployed(CHAMPION, A)),
    ("without the Hub until now, alone", (CHAMPION,), 3, deployed(CHAMPION, push=False)),
    ("without the Hub until now, twice", (CHAMPION, replace(CHAMPION, actor="somebody else")), 2,
     deployed(CHAMPION, push=False)),
    ("without the Hub until now, and a better model", (CHAMPION, A), 1, deployed(CHAMPION, push=False)),
    ("a deleted repository, twice", (CHAMPION, replace(CHAMPION, actor="somebody else")), 1,
     without_repository(CROWNED)),
    ("a deleted repository and a better model", (CHAMPION, A), 1, without_repository(CROWNED)),
    ("a rollback to a model that the Hub never had", (Rollback(to=1), A), 0,
     deployed(A, world=deployed(CHAMPION, push=False))),
    ("two rollbacks", (Rollback(to=1), Rollback(to=2)), 0, deployed(CHAMPION, A, B)),
]


def search(actors: tuple[Actor, ...], crashes: int, start: World, splits: frozenset[str] | None) -> Model:
    model = Model(actors, crashes, start, known=(CHAMPION, A, B), splits=splits)
    model.run()
    print(f"{len(actors)} deployers, {crashes} crashes: {model.states:,} states, {len(model.worlds):,} worlds")
    return model


IN_EVERY_RUN = ("two of one score", "the champion alone", "without the Hub until now, alone")


@pytest.mark.parametrize(("actors", "crashes", "start"), [
    pytest.param(*case, id=name, marks=[] if name in IN_EVERY_RUN else pytest.mark.reliability)
    for name, *case in SMALL
])
def test_no_interleaving_of_single_requests_and_crashes_breaks_an_invariant(
    actors: tuple[Actor, ...], crashes: int, start: World
) -> None:
    assert search(actors, crashes, start, EVERY_REQUEST).states >= 10


@pytest.mark.reliability
@pytest.mark.slow  # minutes
@pytest.mark.parametrize(
    ("challengers", "start"),
    [((A, B, C), World()), ((A, B, C), CROWNED), ((A, NEAR_A, B), CROWNED), ((A, TWIN, B), World()),
     ((A, FORCED, CHAMPION), CROWNED)],
    ids=["ascending", "ascending over a champion", "within the threshold", "one model twice", "forced"],
)
def test_no_interleaving_of_three_deployers_and_three_crashes_breaks_an_invariant(
    challengers: tuple[Challenger, ...], start: World
) -> None:
    assert search(challengers, 3, start, STEPS).states > 100_000


Change = Callable[[pytest.MonkeyPatch], None]


def no_verify_and_repeat(patch: pytest.MonkeyPatch) -> None:
    def settle(now: Progress, ports: Ports) -> Progress:
        return replace(now, step=now.settled, view=ports.ledger.view())

    patch.setitem(protocol._STEPS, Step.SETTLE, settle)


def a_slot_that_can_be_overwritten(patch: pytest.MonkeyPatch) -> None:
    def claim(self: FakeLedger, slot: object) -> bool:
        def write(w: World) -> tuple[World, bool]:
            return replace(w, slots=(*w.slots[: slot.number - 1], slot.text())), True  # type: ignore[attr-defined]

        return bool(self._outside.call("ledger.claim", write))

    patch.setattr(FakeLedger, "claim", claim)


def no_reconcile(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(protocol._STEPS, Step.RECONCILE, lambda now, _ports: replace(now, step=Step.DECIDE))


def a_mirror_of_ones_own_promotions_only(patch: pytest.MonkeyPatch) -> None:
    def mirror(now: Progress, ports: Ports) -> Progress:
        return protocol._mirror(now, ports) if now.promoted else replace(now, step=Step.DECIDE)

    patch.setitem(protocol._STEPS, Step.MIRROR, mirror)


def a_second_commit_for_a_known_key(patch: pytest.MonkeyPatch) -> None:
    def publish(now: Progress, ports: Ports) -> Progress:
        assert ports.hub
        return replace(now, step=Step.CLAIM, release=ports.hub.publish(ports.key))

    patch.setitem(protocol._STEPS, Step.PUBLISH, publish)


def shown_before_it_is_claimed(patch: pytest.MonkeyPatch) -> None:
    def publish(now: Progress, ports: Ports) -> Progress:
        now = protocol._publish(now, ports)
        ports.registry.set_alias("champion", now.version)
        return now

    patch.setitem(protocol._STEPS, Step.PUBLISH, publish)


def a_claim_without_a_new_decision(patch: pytest.MonkeyPatch) -> None:
    def claim(now: Progress, ports: Ports) -> Progress:
        return protocol._claim(replace(now, view=ports.ledger.view()), ports)

    patch.setitem(protocol._STEPS, Step.CLAIM, claim)


def a_republication_without_a_new_look(patch: pytest.MonkeyPatch) -> None:
    def claim(now: Progress, ports: Ports) -> Progress:
        return protocol._claim_republished(replace(now, view=ports.ledger.view()), ports)

    patch.setitem(protocol._STEPS, Step.CLAIM_REPUBLISHED, claim)


def a_mirror_without_a_parent(patch: pytest.MonkeyPatch) -> None:
    def mirror(self: FakeHub, view: object) -> None:
        texts = tuple(slot.text() for slot in view.slots)  # type: ignore[attr-defined]
        self._call("hub.mirror", lambda w: (replace(w, mirrored=texts), None))

    patch.setattr(FakeHub, "mirror", mirror)


@pytest.mark.parametrize(
    ("change", "challengers", "start", "said"),
    [(no_verify_and_repeat, (A, B), World(), "champion is|in Production|main does not|tag is missing|previous is"),
     (no_verify_and_repeat, (A,), CROWNED, "champion is|in Production|main does not|tag is missing"),
     (a_slot_that_can_be_overwritten, (A, B), World(), "an alias names|main shows|stuck at"),
     (a_mirror_of_ones_own_promotions_only, (A,), World(), "the mirror lacks slots"),
     (no_reconcile, (A,), CROWNED, "champion is|in Production|main does not|tag is missing"),
     (a_second_commit_for_a_known_key, (FORCED, CHAMPION), CROWNED, "stuck at project_hub: tag v1 is at"),
     (shown_before_it_is_claimed, (A,), World(), "an alias names version 1"),
     (a_claim_without_a_new_decision, (A, B), World(), "below the bar|promoted twice|not the champion"),
     (a_republication_without_a_new_look, (CHAMPION, replace(CHAMPION, actor="somebody else")),
      deployed(CHAMPION, push=False), "stuck at project_hub: tag v1 is at"),
     (a_mirror_without_a_parent, (A, B), World(), "the mirror lacks slots")],
)
def test_the_model_finds_what_breaks_without_a_precaution(
    change: Change, challengers: tuple[Challenger, ...], start: World, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch)
    with pytest.raises(Violation, match=said) as caught:
        search(challengers, 1, start, EVERY_REQUEST)
    print(caught.value)
