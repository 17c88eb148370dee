"""Deployers that race and are killed never break an invariant; and the check of what was seen finds what does."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.postgres import needs_postgres
from tests.reliability.race_history import NO_SLOT, Observation, misshown, uncrowned, unsettled, violations
from tests.reliability.races import page
from tests.reliability.reliability_page import report

ROOT = Path(__file__).parents[2]
THRESHOLD = Decimal("0.001")


def chain(*slots: dict[str, Any]) -> dict[str, str]:
    texts: dict[str, str] = {}
    before = NO_SLOT
    for number, slot in enumerate(slots, start=1):
        text = json.dumps({"number": number, "previous_sha256": before, **slot}, sort_keys=True)
        texts[f"s{number:08d}"] = text
        before = hashlib.sha256(text.encode()).hexdigest()
    return texts


def slot(version: int, score: str, **changes: Any) -> dict[str, Any]:
    return {"kind": "promote", "key": f"k{version}", "model_digest": f"m{version}", "version": version, "score": score,
            "hub": {"commit": f"c{version}", "tree": f"t{version}"}, **changes}


SLOTS = chain(slot(1, "0.5"), slot(3, "0.6"))
GOOD = Observation(
    at=1.0, champion=3, previous=1, production=(3,), tree="t3", tags={"v1": "c1", "v3": "c3"}, slots=SLOTS,
    mirror=tuple(SLOTS.values()), keys={"1": "k1", "2": "k2", "3": "k3"}, trees={"c1": "t1", "c3": "t3"},
    kept=("c1", "c2", "c3"))
BEFORE = replace(GOOD, at=0.0, champion=1, previous=None, production=(1,), tree="t1", tags={"v1": "c1"},
                 mirror=GOOD.mirror[:1], slots={"s00000001": SLOTS["s00000001"]}, trees={"c1": "t1"})


def with_slots(*slots: dict[str, Any]) -> Observation:
    texts = chain(*slots)
    return replace(GOOD, slots=texts, mirror=tuple(texts.values()))


FORGED: dict[str, tuple[Observation, str]] = {
    "a hole": (replace(GOOD, slots={"s00000001": SLOTS["s00000001"], "s00000003": SLOTS["s00000002"]}), "have holes"),
    "a broken chain": (replace(GOOD, slots=SLOTS | {"s00000002": SLOTS["s00000002"].replace("0.6", "0.7", 1)
                                                   .replace('"previous_sha256": "', '"previous_sha256": "f')}),
                       "slot 2 does not continue slot 1"),
    "a rewritten slot": (with_slots(slot(1, "0.4"), slot(3, "0.6")), "s00000001 was rewritten"),
    "a slot that is gone": (replace(GOOD, slots={}, mirror=(), champion=None, previous=None, production=(), tree=None,
                                    tags={}), "s00000001 was rewritten"),
    "a promotion below the bar": (with_slots(slot(1, "0.5"), slot(3, "0.5005")), "with 0.5005 over a bar of 0.5"),
    "a key that is promoted twice": (
        with_slots(slot(1, "0.5"), slot(1, "0.5")), "slot 2 promotes a key twice"),
    "a champion that was not claimed": (replace(GOOD, champion=2), "alias champion names version 2"),
    "a previous that was not claimed": (replace(GOOD, previous=2), "alias previous names version 2"),
    "a version that is in Production too soon": (replace(GOOD, production=(2, 3)), r"versions \[2\] are in Production"),
    "a release that is shown too soon": (replace(GOOD, tree="t2"), "main shows what no slot has"),
    "a tag without a slot": (replace(GOOD, tags={**GOOD.tags, "v2": "c2"}), "tag v2 is at c2"),
    "a tag that moved": (replace(GOOD, tags={"v1": "c3", "v3": "c3"}), "tag v1 moved from c1 to c3"),
    "a tag that is gone": (replace(GOOD, tags={"v3": "c3"}), "tag v1 moved from c1 to None"),
    "a commit that is gone": (replace(GOOD, trees={"c1": "t1", "c3": None}), "slot 2: its commit c3 is gone"),
    "a commit that nothing holds": (replace(GOOD, kept=("c1",)), "slot 2: its commit c3 is gone"),
    "a version of another key": (replace(GOOD, keys={**GOOD.keys, "3": "k2"}), "version 3 carries another key"),
    "a mirror that is not the ledger": (replace(GOOD, mirror=("other",)), "the mirror is not the ledger"),
    "a mirror that lost slots": (replace(GOOD, mirror=()), "the mirror lost slots"),
    "a champion that is gone": (replace(GOOD, champion=None), "alias champion is gone"),
    "a main that is empty again": (replace(GOOD, tree=None), "main is empty again"),
}


@pytest.mark.parametrize(("forged", "said"), FORGED.values(), ids=FORGED.keys())
def test_a_history_in_which_a_promise_is_broken_is_found_out(forged: Observation, said: str) -> None:
    assert re.search(said, "; ".join(violations([BEFORE, forged], THRESHOLD)))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"champion": 1}, "champion is 1, the head is version 3"), ({"previous": None}, "previous is None, not 1"),
     ({"production": (1, 3)}, "in Production are"), ({"tree": "t1"}, "main does not show"),
     ({"tags": {"v1": "c1"}}, "tag v3 is not"), ({"mirror": GOOD.mirror[:1]}, "the mirror has 1 of 2"),
     ({"keys": {"1": "k1", "2": "k3", "3": "k3"}}, "a key has two versions")])
def test_what_a_quiet_run_left_undone_is_found_out(change: dict[str, Any], said: str) -> None:
    assert said in "; ".join(unsettled(replace(GOOD, **change)))


def test_a_champion_that_is_not_the_best_is_found_out() -> None:
    forced = with_slots(slot(1, "0.6"), slot(3, "0.5", kind="force"))
    assert list(uncrowned(forced, [Decimal("0.5"), Decimal("0.6")], THRESHOLD)) == [
        "the champion has 0.5, and one that passed 0.6", "the champion has 0.5, and 0.6 was evaluated"]
    assert list(uncrowned(GOOD, [Decimal("0.601")], THRESHOLD)) == ["the champion has 0.6, and 0.601 was evaluated"]


def test_a_release_that_main_showed_between_two_looks_is_found_out() -> None:
    commits = {oid: {"parent": parent, "files": files} for oid, parent, files in [
        ("c0", None, {".gitattributes": {"sha256": "a"}}), ("c1", "c0", {"model": {"sha256": "b"}})]}
    state = {"models/acme/shop": {"commits": commits, "branches": {"main": "c1"}}}
    seen = with_slots(slot(1, "0.5", hub={"commit": "c1", "tree": "t1"}))
    assert list(misshown(seen, state, "acme/shop")) == [
        "slot 1: its commit has other files", "main once showed c1, which no slot has"]


def test_a_history_without_fault_is_let_through() -> None:
    later = with_slots(slot(1, "0.5"), slot(3, "0.6"), slot(1, "0.5", kind="force"), slot(3, "0.6"))
    assert violations([BEFORE, GOOD, later], THRESHOLD) == []
    assert list(unsettled(GOOD)) == []
    assert list(uncrowned(GOOD, [Decimal("0.6"), Decimal("0.6005")], THRESHOLD)) == []


def race(root: Path, store: str, *, deployers: int, rounds: int, seed: int, share: float) -> dict[str, Any]:
    """Run a race in a process of its own; gives its summary, fails with its words."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.races", "--store", store, "--root", str(root), "--seed", str(seed),
         "--deployers", str(deployers), "--rounds", str(rounds), "--share", str(share)],
        cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.reliability
def test_two_deployers_that_race_and_are_killed_keep_every_promise(tmp_path: Path, migrated_store: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(migrated_store.read_bytes())
    found = race(tmp_path, "sqlite", deployers=2, rounds=1, seed=2, share=1.0)
    assert found["killed"] >= 1
    assert found["claimed"] >= 1
    assert found["looks"] > 3


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """Store to summary, for the page."""
    return {}


@pytest.mark.reliability
@pytest.mark.slow  # half an hour on two busy cores
@pytest.mark.parametrize(
    ("name", "store", "deployers"),
    [("sqlite", "sqlite", 4), pytest.param("PostgreSQL, mlflow server", "postgresql", 8, marks=needs_postgres)])
def test_many_deployers_that_race_and_are_killed_keep_every_promise(
    name: str, store: str, deployers: int, tmp_path: Path, found: dict[str, dict[str, Any]],
) -> None:
    found[name] = race(tmp_path, store, deployers=deployers, rounds=25, seed=4, share=0.5)
    report("races", page(found))
    assert found[name]["killed"] > 25
    assert found[name]["claimed"] > 25
