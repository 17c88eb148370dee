"""All that stands in MLflow and in results/deployment, as JSON: what runs that were killed are compared by."""

import contextlib
import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from scripts import status_script
from src.core.params import load_params
from src.core.records import OUTPUT_DIR, manifest, tree_digest
from tests.fakes.promoted import NAME
from utils import mlflow_utils, results
from utils.tracking.ledger import MlflowLedger

_TIMES = {"time"}
_IDS = {"deployment_run", "decision_id"}


def look() -> int:
    """Write it to stdout."""
    params = load_params(Path("params.yaml"))
    client = mlflow_utils.connect(params.mlflow)
    view = MlflowLedger(client, NAME, params.mlflow.experiment_name).view()
    standing = _status()
    told = {
        "drift": standing["drift"],
        "unfinished": standing["unfinished"],
        "slots": [slot.model_dump(mode="json", exclude=_TIMES) for slot in view.slots],
        "lines": [slot.text() for slot in view.slots],
        "versions": _versions(client),
        "aliases": _aliases(client),
        "runs": _runs(client),
        "info": {name: value for name, value in results.last_info(OUTPUT_DIR).items() if name not in _IDS},
        "records": sorted(path.name for path in OUTPUT_DIR.iterdir()) if OUTPUT_DIR.is_dir() else [],
        "release": {path.name: tree_digest(manifest(path)) for path in Path("results").glob("*release*")},
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
             "files": _files(client, each.run_id, "model")} for each in sorted(found, key=lambda v: int(v.version))]


def _files(client: MlflowClient, run_id: str, path: str) -> dict[str, int]:
    return {entry.path: entry.file_size for entry in client.list_artifacts(run_id, path)}


def _aliases(client: MlflowClient) -> dict[str, int]:
    found = client.search_registered_models(f"name = '{NAME}'")
    return {alias: int(version) for model in found for alias, version in model.aliases.items()}


def _runs(client: MlflowClient) -> dict[str, int]:
    """How many runs of a kind ended how; what a killed run leaves is marked KILLED, but for an unpinned ledger's."""
    homes = [home.experiment_id for home in client.search_experiments()]
    runs = client.search_runs(homes)
    return dict(Counter(f"{run.data.tags.get('kind')} {run.info.status}" for run in runs))
