"""What two runs left, looked at and compared: by which rules one end is as good as the other, and what always holds."""

import contextlib
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from scripts import status_script
from src.core.params import load_params
from src.core.records import OUTPUT_DIR, manifest, tree_digest
from src.ledger.ports import LEDGER_BRANCH, LEDGER_FILE
from tests.fakes.loopback_hub import LoopbackHub
from tests.fakes.promoted import NAME, REPO
from utils import mlflow_utils, results
from utils.hub.repository import ATTRIBUTES
from utils.tracking.ledger import MlflowLedger

World = dict[str, Any]
_IDS = {"deployment_run", "decision_id"}


def look() -> int:
    """Write all that stands in MLflow and in results/deployment to stdout, as JSON."""
    params = load_params(Path("params.yaml"))
    client = mlflow_utils.connect(params.mlflow)
    view = MlflowLedger(client, NAME, params.mlflow.experiment_name).view()
    standing = _status()
    told = {
        "drift": standing["drift"],
        "unfinished": standing["unfinished"],
        "slots": [slot.model_dump(mode="json", exclude={"time"}) for slot in view.slots],
        "lines": [slot.text() for slot in view.slots],
        "versions": _versions(client),
        "aliases": {alias: int(version) for model in client.search_registered_models(f"name = '{NAME}'")
                    for alias, version in model.aliases.items()},
        "runs": _runs(client),
        "info": {name: value for name, value in results.last_info(OUTPUT_DIR).items() if name not in _IDS},
        "records": sorted(path.name for path in OUTPUT_DIR.iterdir()) if OUTPUT_DIR.is_dir() else [],
        "release": {path.name: tree_digest(manifest(path)) if any(path.iterdir()) else "empty"
                    for path in Path("results").glob("*release*")},
    }
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


def _status() -> dict[str, Any]:
    """What the status command says."""
    sys.argv, said = ["status_script.py", "--json"], io.StringIO()
    with contextlib.redirect_stdout(said):
        status_script.main()
    found: dict[str, Any] = json.loads(said.getvalue())
    return found


def _versions(client: MlflowClient) -> list[dict[str, Any]]:
    found = client.search_model_versions(f"name = '{NAME}'")
    return [{"version": int(each.version), "stage": each.current_stage, "tags": each.tags,
             "files": {entry.path: entry.file_size for entry in client.list_artifacts(each.run_id, "model")}}
            for each in sorted(found, key=lambda v: int(v.version))]


def _runs(client: MlflowClient) -> dict[str, int]:
    """How many runs of a kind ended how; what a killed run leaves is marked KILLED, but for an unpinned ledger's."""
    runs = client.search_runs([home.experiment_id for home in client.search_experiments()])
    return dict(Counter(f"{run.data.tags.get('kind')} {run.info.status}" for run in runs))


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
    shown = {f"v{slot['version']}": slot["hub"] for slot in slots if slot["hub"]}
    return {
        "slots": [_without(slot, "hub") for slot in slots],
        "trees of the slots": [slot["hub"] and slot["hub"]["tree"] for slot in slots],
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
    versions, published = {slot["version"] for slot in slots}, [slot for slot in slots if slot["hub"]]
    commits = {f"v{slot['version']}": slot["hub"]["commit"] for slot in published}
    trees = {slot["hub"]["tree"] for slot in published}
    shown = set(world["aliases"].values()) | {v["version"] for v in world["versions"] if v["stage"] == "Production"}
    checks = {
        f"versions {sorted(shown - versions)} are shown, which the ledger does not know": shown <= versions,
        "main shows what was never promoted": hub["main"] is None or hub["main"] in trees,
        "a slot's commit is not on the Hub, or not what it says": all(
            hub["trees"].get(slot["hub"]["commit"]) == slot["hub"]["tree"] for slot in published),
        "a tag is at what is not its slot's commit": all(commits.get(tag) == oid for tag, oid in hub["tags"].items()),
        "the mirror is not the ledger's beginning": world["lines"][: len(hub["mirror"])] == hub["mirror"],
    }
    return [problem for problem, holds in checks.items() if not holds]


def parts(world: World, before: World) -> list[str]:
    """What of a promotion stands that did not stand before it; or of the publication of the last slot's version."""
    hub, slot = world["hub"], len(before["slots"]) + 1
    unpublished = [each["version"] for each in before["slots"][-1:] if each["hub"] is None]
    number = next(iter(unpublished), slot)
    version = next((v for v in world["versions"] if v["version"] == number), None)
    released = sum(count for title, count in hub["titles"].items() if title.startswith("Champion: release "))
    stands = {
        "ledger": bool(world["runs"].get("ledger FINISHED")) and not before["runs"].get("ledger FINISHED"),
        "release folder": world["release"] != before["release"],
        "version": version is not None,
        "branch": any(branch.startswith("release/") for branch in hub["branches"]),
        "release commit": released >= number,
        "slot": len(world["slots"]) >= slot,
        "main": f"Champion: v{number}" in hub["titles"],
        "tag": f"v{number}" in hub["tags"],
        "champion": world["aliases"].get("champion") == number,
        "previous": world["aliases"].get("previous") == number - 1 > 0,
        "stage": version is not None and version["stage"] == "Production",
        "mirror": len(hub["mirror"]) >= slot,
        "record": world["info"].get("ledger_slot") == slot,
        "deployment run": world["runs"].get("deployment FINISHED", 0) > before["runs"].get("deployment FINISHED", 0),
    }
    there_before = {"version", "champion", "previous", "stage"} if unpublished else set()
    return [part for part, there in stands.items() if there and part not in there_before]


def _without(mapping: Mapping[str, Any], *names: str) -> World:
    return {name: value for name, value in mapping.items() if name not in names}
