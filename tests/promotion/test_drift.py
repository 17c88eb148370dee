"""Every difference between the ledger and what stands outside is found, named once, and comes with a remedy."""

from dataclasses import replace
from typing import Any

import pytest

from src.core.records import digest_of
from src.ledger.ports import Holders, HubState
from src.ledger.slots import LedgerView
from src.promotion import status
from src.promotion.status import ObservedHub, ObservedState, drift
from tests.fakes.factories import hub_ref, ledger, rollback, slot

THREE = ledger(*((model, 0.3, {"hub": hub_ref(model)}) for model in "abc"))
KEYS = {each.version: each.key for each in THREE.slots}
STATE = HubState(head="m" * 40, tree=hub_ref("c").tree, branches={"main": "m" * 40, "ledger": "l" * 40},
                 tags={f"v{each.version}": each.hub.commit for each in THREE.slots if each.hub})
LINES = [each.text() for each in THREE.slots]
HUB = ObservedHub(repo="shop/bot", state=STATE, holds_release=False, mirror=LINES)
HOLDERS = Holders(champion=3, previous=2, production=frozenset({3}))
QUIET = ObservedState(view=THREE, holders=HOLDERS, expected=HOLDERS, keys=KEYS, hub=HUB, pruned=frozenset(),
             info={"result": "promoted", "champion": {"version": 3}})
NOBODY = Holders(champion=None, previous=None, production=frozenset())
EMPTY = ObservedState(LedgerView(()), holders=NOBODY, expected=NOBODY, keys={}, hub=None, info={}, pruned=frozenset())


def holders(**changes: Any) -> ObservedState:
    return replace(QUIET, holders=replace(HOLDERS, **changes))


def state(**changes: Any) -> ObservedState:
    return replace(QUIET, hub=replace(HUB, state=replace(STATE, **changes)))


def mirror(lines: list[str] | None) -> ObservedState:
    return replace(QUIET, hub=replace(HUB, mirror=lines))


def copied(lines: list[str]) -> ObservedState:
    return replace(QUIET, copy=lines)


REWRITTEN = LedgerView((*THREE.slots[:2], THREE.slots[2].model_copy(update={"score": "0.9"})))
OTHER = [*LINES[:2], LINES[2].replace('"actor":"somebody"', '"actor":"nobody"')]


def lines_of(seen: ObservedState) -> list[str]:
    return [f"{found.place}: {found.text}; {found.remedy}" for found in drift(seen)]


WITHOUT_HUB = LedgerView((*THREE.slots, slot(THREE, "d", 0.9)))
ELSEWHERE = LedgerView((*THREE.slots, slot(THREE, "d", 0.9, hub=hub_ref("d", "old/repo"))))

ROWS: list[tuple[ObservedState, str]] = [
    (holders(champion=None), "registry: alias champion is at no version; the ledger says version 3; `--repair`"),
    (holders(champion=1), "registry: alias champion is at version 1; the ledger says version 3; `--repair` rest"),
    (holders(champion=9), "registry: alias champion is at version 9, which the ledger does not know; the ledger says"),
    (holders(previous=1), "registry: alias previous is at version 1; the ledger says version 2; `--repair`"),
    (holders(previous=None), "registry: alias previous is at no version; the ledger says version 2; `--repair`"),
    (holders(production=frozenset()), "registry: stage Production holds no version; the ledger says version 3; `--rep"),
    (holders(production=frozenset({3, 1})), "registry: stage Production holds versions 1, 3; the ledger says"),
    (replace(QUIET, keys={1: KEYS[1], 2: KEYS[2]}), "registry: version 3 is gone; restore MLflow's database"),
    (replace(QUIET, keys={**KEYS, 1: digest_of("other")}), "registry: version 1 carries the key "),
    (replace(QUIET, keys={**KEYS, 3: None}), "registry: version 3 carries the key none; the ledger says "),
    (state(tree=hub_ref("a").tree), "hub: shop/bot main holds version 1; the ledger says version 3; `--repair`"),
    (state(tree=digest_of("edited")), "hub: shop/bot main holds files that are no release of this ledger; the ledger"),
    (state(tree=None, head=None), "hub: shop/bot main holds nothing; the ledger says version 3; `--repair`"),
    (state(tags={**STATE.tags, "v1": "0" * 40}), "hub: tag v1 is at 00000000; the ledger says "),
    (state(tags={name: at for name, at in STATE.tags.items() if name != "v3"}), "hub: tag v3 is missing; `--repair`"),
    (state(tags={name: at for name, at in STATE.tags.items() if name != "v1"}),
     "hub: tag v1 is missing, and its commit is still there; `--repair`"),
    (replace(QUIET, hub=replace(HUB, lost=frozenset({3}), state=replace(
        STATE, tree=None, tags={name: at for name, at in STATE.tags.items() if name != "v3"}))),
     "hub: version 3 is no longer on the Hub; shop/bot main holds nothing; `--repair` publishes it"),
    (mirror(None), "mirror: is 3 entries behind the ledger; `--repair`"),
    (mirror(LINES[:2]), "mirror: is 1 entry behind the ledger; `--repair`"),
    (mirror([*LINES, "{}"]), "mirror: has 4 entries, the ledger 3, which lacks an entry that cannot be read; if "),
    (mirror([LINES[0], "{}", LINES[2]]), "ledger: entry 2 differs: the Hub's branch `ledger` cannot be read; delete"),
    (copied(LINES[:2]), "copy: is 1 entry behind the ledger; `--repair`"),
    (copied([*LINES, "{}"]), "copy: has 4 entries, the ledger 3, which lacks an entry that cannot be read; if so"),
    (copied(OTHER), "ledger: entry 3 differs, results/deployment/ledger.jsonl stands alone: actor (MLflow and the"),
    (replace(copied(LINES), view=REWRITTEN), 'ledger: entry 3 differs, MLflow stands alone: score (MLflow: "0.9", re'),
    (replace(QUIET, lost_weights=frozenset({3})), "registry: version 3 has no weights in this MLflow store"),
    (replace(QUIET, info={"champion": {"version": 2}}), "record: deployment_info.json names version 2 as champion;"),
    (replace(QUIET, info={"champion": None}), "record: deployment_info.json names no version as champion; the ledger"),
    (replace(EMPTY, holders=replace(NOBODY, champion=2)), "registry: shows version 2 as champion, but the ledger is"),
    (replace(EMPTY, holders=replace(NOBODY, production=frozenset({1, 2}))), "registry: shows versions 1, 2 as champi"),
    (replace(EMPTY, hub=replace(HUB, holds_release=True, mirror=None)), "hub: shop/bot holds a release, but the ledg"),
    (replace(EMPTY, hub=replace(HUB, holds_release=True)), "mirror: has 3 entries, the ledger 0, which lacks entry 1"),
    (replace(EMPTY, info={"champion": {"version": 1}}), "record: deployment_info.json names version 1 as champion;"),
]


@pytest.mark.parametrize(("seen", "line"), ROWS, ids=[row[1].split(";")[0] for row in ROWS])
def test_each_difference_is_found_once_and_named(seen: ObservedState, line: str) -> None:
    (found,) = lines_of(seen)
    assert found.startswith(line)
    assert found.isascii()


WITHOUT_V1 = replace(
    QUIET, keys={2: KEYS[2], 3: KEYS[3]}, hub=replace(HUB, lost=frozenset({1}), state=replace(
        STATE, tags={name: at for name, at in STATE.tags.items() if name != "v1"})))


@pytest.mark.parametrize("seen", [
    QUIET, EMPTY, replace(QUIET, hub=None, info={}), replace(QUIET, info={"result": "failed", "code": 4}), WITHOUT_V1],
    ids=["all shows the head", "empty", "no Hub, no record", "a failed deployment", "an old version gone"])
def test_there_is_nothing_to_find(seen: ObservedState) -> None:
    assert drift(seen) == []


@pytest.mark.parametrize(("view", "line"), [
    (WITHOUT_HUB, "hub: version 4 was promoted without the Hub; shop/bot main holds version 3"),
    (ELSEWHERE, "hub: version 4 was published to old/repo, params.yaml names shop/bot"),
])
def test_a_champion_that_this_hub_repository_cannot_show_is_drift(view: LedgerView, line: str) -> None:
    shown = Holders(champion=4, previous=3, production=frozenset({4}))
    seen = ObservedState(view=view, holders=shown, expected=shown, keys={**KEYS, 4: view.slots[3].key}, info={},
                pruned=frozenset(), hub=replace(HUB, mirror=[each.text() for each in view.slots]))
    (found,) = lines_of(seen)
    assert found.startswith(f"{line}; ")
    assert found.endswith("`--repair` publishes it, and so does the next deployment that pushes")


def test_several_differences_are_all_found() -> None:
    seen = replace(holders(champion=1, production=frozenset({1})), hub=replace(HUB, mirror=None),
                   info={"champion": {"version": 1}})
    assert [found.place for found in drift(seen)] == ["registry", "registry", "mirror", "record"]


def test_numbers_are_said_as_a_person_would() -> None:
    told = [status.versions(numbers) for numbers in ([], [None], [3], {2, 10, 3})]
    assert told == ["no version", "no version", "version 3", "versions 2, 3, 10"]


def test_of_all_tags_only_releases_count() -> None:
    assert status.highest_release({"v2": "", "v10": "", "v1x": "", "w99": "", "v": ""}) == 10
    assert status.highest_release({}) == 0


KEY = digest_of("new")


def begun(key: str, time: str, place: str = "here") -> status.StartedPromotion:
    return status.StartedPromotion(key=key, time=time, text=place)


def test_a_promotion_that_no_slot_accounts_for_is_unfinished_with_all_its_places() -> None:
    branches = {**STATE.branches, f"release/{KEY[:12]}": "b" * 40}
    traces = [begun(KEY[:12], "2026-11-20T12:00:00.123"), begun(KEY, "2026-11-20T12:00:01", "run 7")]
    assert status.unfinished(traces, state(branches=branches)) == {
        KEY[:12]: ["here", "run 7", f"Hub branch release/{KEY[:12]}"]}


@pytest.mark.parametrize(("key", "time", "open_"), [
    (KEYS[3][:12], "2026-11-20T11:59:59.9", False),  # its slot came after
    (KEYS[3], "2026-11-20T12:00:00", False),
    (KEYS[3], "2026-11-20T12:00:01", True),  # begun again since
    ("rollback", "2026-11-20T12:00:00", False),
    ("rollback", "2026-11-20T12:00:01", True),
])
def test_a_later_slot_of_the_same_key_accounts_for_a_promotion(key: str, time: str, open_: bool) -> None:
    assert bool(status.unfinished([begun(key, time)], QUIET)) is open_


def test_the_report_says_everything_in_plain_ascii() -> None:
    view = rollback(THREE, 1, blocks=[2, 3])
    wanted = Holders(champion=1, previous=None, production=frozenset({1}))
    seen = replace(QUIET, view=view, expected=wanted)
    ended = status.EndedDeployment("2026", "keep", "not_best", "None", "r1")
    said = status.text(status.facts("shop", seen, drift(seen), [ended], []))
    assert said.isascii()
    for line in ("shop: version 1 is the champion (score 0.300)\n", "blocked        versions 2, 3\n",
                 "ledger         4 entries, hash chain intact\n",
                 "registry       champion = version 3, previous version = version 2, stage Production = version 3\n",
                 "last decision  promoted\n", "decisions      2026 UTC  not promoted (not best), MLflow run r1\n",
                 "drift          registry: alias champion is at version 3"):
        assert line in said
    assert said.count("\n                 ") == len(drift(seen)) - 1


def test_the_report_of_nothing_says_so() -> None:
    said = status.text(status.facts("shop", EMPTY, [], [], []))
    assert said.startswith("shop: no champion yet\n")
    for line in ("registry       no champion, no previous version, stage Production is empty\n",
                 "Hub            not pushed\n", "last decision  none\n", "drift          none"):
        assert line in said
