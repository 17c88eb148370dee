"""What two runs left, compared: the rules by which one end is as good as the other, and what must hold at once."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from src.core.records import tree_digest
from src.ledger.ports import LEDGER_BRANCH, LEDGER_FILE
from tests.fakes.loopback_hub import LoopbackHub
from tests.fakes.promoted import REPO
from utils.hub.repository import ATTRIBUTES

World = dict[str, Any]


def seen_hub(hub: LoopbackHub) -> World:
    """The repository as it stands; trees by digest, commits counted by title over all branches."""
    with hub.lock:
        repo = hub.repos.get(f"models/{REPO}")
        if repo is None:
            return {"main": None, "branches": [], "tags": {}, "titles": {}, "mirror": [], "trees": {}, "private": None}
        trees = {oid: _tree(commit["files"]) for oid, commit in repo["commits"].items()}
        ledger = repo["commits"][repo["branches"][LEDGER_BRANCH]]["files"] if LEDGER_BRANCH in repo["branches"] else {}
        lines = hub.blob(ledger[LEDGER_FILE]["sha256"]).read_text().splitlines() if LEDGER_FILE in ledger else []
        return {"main": trees[repo["branches"]["main"]], "branches": sorted(repo["branches"]), "mirror": lines,
                "tags": dict(repo["tags"]), "titles": dict(Counter(c["title"] for c in repo["commits"].values())),
                "trees": trees, "private": repo["private"]}


def _tree(files: Mapping[str, Mapping[str, Any]]) -> str | None:
    found = {path: file["sha256"] for path, file in files.items() if path != ATTRIBUTES}
    return tree_digest(found) if found else None


def essence(world: World) -> World:
    """What must be equal: all but times, ids, and what a killed run left marked as killed."""
    slots, hub = world["slots"], world["hub"]
    shown = {f"v{slot['version']}": slot["hub"] for slot in slots}
    return {
        "slots": [_without(slot, "hub") for slot in slots],
        "trees of the slots": [slot["hub"]["tree"] for slot in slots],
        "versions": world["versions"],
        "aliases": world["aliases"],
        # A ledger's run that was never pinned stays open: nobody will ever look at it.
        "runs": {"open": world["runs"].get("deployment RUNNING", 0),
                 "recorded": world["runs"].get("deployment FINISHED", 0) > 0},
        "main": hub["main"],
        "private": hub["private"],
        "branches": hub["branches"],
        "commits": hub["titles"],
        "tags": {tag: (oid == shown[tag]["commit"], hub["trees"][oid] == shown[tag]["tree"]) if tag in shown else oid
                 for tag, oid in hub["tags"].items()},
        "mirror": hub["mirror"] == world["lines"],
        "info": _without(world["info"], "hub"),
        "records": world["records"],
        "release": world["release"],
        "drift": world["drift"],
        "unfinished": world["unfinished"],
    }


def differences(found: World, wanted: World) -> list[str]:
    """In words."""
    told: list[str] = []
    for name in sorted(found.keys() | wanted.keys()):
        ours, theirs = found.get(name), wanted.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            told += [f"{name}: {line}" for line in differences(ours, theirs)]
        elif ours != theirs:
            told.append(f"{name} is {ours!r:.300}, not {theirs!r:.300}")
    return told


def broken(world: World) -> list[str]:
    """The invariants that hold at every instant, as far as they are seen from outside (src.ledger proved the chain)."""
    slots, hub = world["slots"], world["hub"]
    versions = {slot["version"] for slot in slots}
    commits = {f"v{slot['version']}": slot["hub"]["commit"] for slot in slots}
    trees = {slot["hub"]["tree"] for slot in slots}
    shown = set(world["aliases"].values()) | {v["version"] for v in world["versions"] if v["stage"] == "Production"}
    checks = {
        f"versions {sorted(shown - versions)} are shown, which the ledger does not know": shown <= versions,
        "main shows what was never promoted": hub["main"] is None or hub["main"] in trees,
        "a slot's commit is not on the Hub, or not what it says": all(
            hub["trees"].get(slot["hub"]["commit"]) == slot["hub"]["tree"] for slot in slots),
        "a tag is at what is not its slot's commit": all(commits.get(tag) == oid for tag, oid in hub["tags"].items()),
        "the mirror is not the ledger's beginning": world["lines"][: len(hub["mirror"])] == hub["mirror"],
    }
    return [problem for problem, holds in checks.items() if not holds]


def parts(world: World, before: World) -> list[str]:
    """What of a promotion stands that did not stand before it."""
    hub, number = world["hub"], len(before["slots"]) + 1
    version = next((v for v in world["versions"] if v["version"] == number), None)
    released = sum(count for title, count in hub["titles"].items() if title.startswith("Champion: release "))
    stands = {
        "ledger": bool(world["runs"].get("ledger FINISHED")) and not before["runs"].get("ledger FINISHED"),
        "release folder": world["release"] != before["release"],
        "version": version is not None,
        "branch": any(branch.startswith("release/") for branch in hub["branches"]),
        "release commit": released >= number,
        "slot": len(world["slots"]) >= number,
        "main": f"Champion: v{number}" in hub["titles"],
        "tag": f"v{number}" in hub["tags"],
        "champion": world["aliases"].get("champion") == number,
        "previous": world["aliases"].get("previous") == number - 1 > 0,
        "stage": version is not None and version["stage"] == "Production",
        "mirror": len(hub["mirror"]) >= number,
        "record": (world["info"].get("champion") or {}).get("version") == number,
        "deployment run": world["runs"].get("deployment FINISHED", 0) > before["runs"].get("deployment FINISHED", 0),
    }
    return [part for part, there in stands.items() if there]


def _without(mapping: Mapping[str, Any], *names: str) -> World:
    return {name: value for name, value in mapping.items() if name not in names}
