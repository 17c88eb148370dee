"""Deployers that race and are killed never break an invariant; and the check of what was seen finds what does."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.loopback_hub import WRITE, LoopbackHub
from tests.fakes.postgres import MlflowServer, PostgresCluster, needs_postgres
from tests.reliability.race_history import NO_SLOT, Observation, misshown, uncrowned, unsettled, violations
from tests.reliability.reliability_page import report, table

ROOT = Path(__file__).parents[2]
THRESHOLD = Decimal("0.001")
MANY = {"rounds": 25, "seed": 4, "share": 0.5}


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


GONE = replace(GOOD, slots={}, mirror=(), champion=None, previous=None, production=(), tree=None, tags={})
FORGED = [
    (replace(GOOD, slots={"s00000001": SLOTS["s00000001"], "s00000003": SLOTS["s00000002"]}), "the slots have holes"),
    (replace(GOOD, slots=SLOTS | {"s00000002": SLOTS["s00000002"].replace('sha256": "', 'sha256": "f')}),
     "slot 2 does not continue slot 1"),
    (with_slots(slot(1, "0.4"), slot(3, "0.6")), "s00000001 was rewritten"),
    (GONE, "s00000001 was rewritten"),
    (with_slots(slot(1, "0.5"), slot(3, "0.5005")), "with 0.5005 over a score to beat of 0.5"),
    (with_slots(slot(1, "0.5"), slot(1, "0.5")), "slot 2 promotes a key twice"),
    (replace(GOOD, champion=2), "alias champion names version 2"),
    (replace(GOOD, champion=None), "alias champion is gone"),
    (replace(GOOD, previous=2), "alias previous names version 2"),
    (replace(GOOD, production=(2, 3)), "versions [2] are in Production"),
    (replace(GOOD, tree="t2"), "main shows what no slot has"),
    (replace(GOOD, tree=None), "main is empty again"),
    (replace(GOOD, tags={**GOOD.tags, "v2": "c2"}), "tag v2 is at c2"),
    (replace(GOOD, tags={"v1": "c3", "v3": "c3"}), "tag v1 moved from c1 to c3"),
    (replace(GOOD, tags={"v3": "c3"}), "tag v1 moved from c1 to None"),
    (replace(GOOD, trees={"c1": "t1", "c3": None}), "slot 2: its commit c3 is gone"),
    (replace(GOOD, kept=("c1",)), "slot 2: its commit c3 is gone"),
    (replace(GOOD, keys={**GOOD.keys, "3": "k2"}), "version 3 carries another key"),
    (replace(GOOD, mirror=("other",)), "the mirror is not the ledger"),
    (replace(GOOD, mirror=()), "the mirror lost slots"),
]


@pytest.mark.parametrize(("forged", "said"), FORGED, ids=[said for _, said in FORGED])
def test_a_history_in_which_a_promise_is_broken_is_found_out(forged: Observation, said: str) -> None:
    assert said in "; ".join(violations([BEFORE, forged], THRESHOLD))


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


HEADER = ("store", "deployers", "rounds", "processes", "killed", "slots claimed", "claims lost", "promoted", "kept",
          "already", "run again", "looks", "broken invariants", "seconds")


def race(root: Path, uri: str, **asked: float) -> dict[str, Any]:
    """Run a race in a process of its own; gives its figures, fails with its words."""
    flags = json.dumps({"root": str(root), "tracking_uri": uri, **asked})
    with LoopbackHub(root / "hub") as hub:
        done = subprocess.run(
            [sys.executable, "-m", "tests.reliability.races", flags],
            env=os.environ | {"HF_TOKEN": WRITE, "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home"),
                              "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
            cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The block of docs/appendix-reliability.md; found: store to figures."""
    rows = [(name, *(each[count] for count in ("deployers", "rounds", "started", "killed", "claimed", "lost")),
             *(each["results"].get(result, 0) for result in ("promoted", "kept", "already")), each["run_again"],
             each["looks"], 0, each["seconds"]) for name, each in found.items()]
    where = [f"Killed in, {name}: " + ", ".join(f"{step} {count}" for step, count in each["killed_in"].items())
             for name, each in found.items()]
    return "\n\n".join([table(HEADER, rows), *where])


@pytest.mark.reliability
def test_two_deployers_that_race_and_are_killed_keep_every_promise(tmp_path: Path, migrated_store: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(migrated_store.read_bytes())
    found = race(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", deployers=2, rounds=1, seed=2, share=1.0)
    assert found["killed"] >= 1
    assert found["claimed"] >= 1
    assert found["looks"] > 3


@pytest.mark.reliability
@pytest.mark.slow  # half an hour on two busy cores
@needs_postgres
def test_many_deployers_that_race_and_are_killed_keep_every_promise(tmp_path: Path) -> None:
    found = {"sqlite": race(tmp_path / "sqlite", f"sqlite:///{tmp_path}/mlflow.db", deployers=4, **MANY)}
    with PostgresCluster() as cluster, MlflowServer(cluster.migrated("races"), tmp_path / "artifacts") as server:
        found["PostgreSQL, mlflow server"] = race(tmp_path / "postgres", server.url, deployers=8, **MANY)
    report("races", page(found))
    for each in found.values():
        assert each["killed"] > 25
        assert each["claimed"] > 25
