"""A copy of this repository to run the pipeline in, with other parameters and no results."""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks import measure
from src.core.params import overlay

# No address and no token of whoever runs the benchmark, and no CUDA that this machine may have.
ENVIRONMENT = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "MLFLOW_TRACKING_URI": "",
               "HF_TOKEN": "", "CI": "", "HF_HUB_OFFLINE": "1"}


def make(folder: Path, changes: Mapping[str, Any], *, rows: int | None = None) -> None:
    """Copy what git knows or would take, lay changes over params.yaml, and keep the first `rows` of the data."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], check=True, cwd=measure.ROOT,
                            capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if name.partition("/")[0] not in ("results", "tests", "dvc.lock") and (measure.ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(measure.ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    config = folder / "params.yaml"
    params = overlay(yaml.safe_load(config.read_text()), changes)
    config.write_text(yaml.safe_dump(params, sort_keys=False))
    if rows is not None:
        _cut(folder / params["data"]["path"], rows)


def _cut(data: Path, rows: int) -> None:
    with data.open(encoding="utf-8", newline="") as file:
        kept = list(csv.reader(file))[: rows + 1]
    with data.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(kept)


def run(folder: Path, *command: str) -> measure.Measured:
    """A command in the copy, measured."""
    return measure.run(command, cwd=folder, env=ENVIRONMENT)
