"""Make the champion's release a bundle to serve, and check it: results/space/. Off unless space.enabled says so."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core import records
from src.core.errors import IntegrityError, InvalidParams
from src.core.params import SpaceParams, load_params
from src.core.records import OUTPUT_DIR, RELEASE_DIR, SpaceRecord
from utils import json_utils, process, results

OUTPUT = Path("results/space")
QUESTIONS, ROWS = Path("results/data/train.jsonl"), Path("results/data/evaluation.jsonl")
SPACE = Path("space")
BUILDER = SPACE / ".venv-builder/bin/python"
SERVING = SPACE / ".venv/bin/python"
SOURCES = ("prepare_assets.py", "validate_bundle.py", "files.py", "bundling", "serving", "requirements/builder.txt")
logger = logging.getLogger("champion")
PARSER = process.Arguments(description=__doc__)
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {records.CONFIG}")
PARSER.add_argument("--output-dir", type=Path, metavar="DIR", help=f"default {OUTPUT}")


def main() -> int:
    """Write space.json, and bundle/ if there is a champion's release; returns the exit code."""
    flags = PARSER.parse_args()
    config = flags.config or records.CONFIG
    params = load_params(config).space
    output = flags.output_dir or OUTPUT
    record = SpaceRecord(state="off", why=f"space.enabled is false in {config}", key=None, version=None, serves=[],
                         made_from=None)
    if params.enabled:
        record = _bundle(params, output)
    json_utils.write_object(output / "space.json", record.model_dump(mode="json"))
    process.say(f"space: {record.state}, {record.why}")
    return 0


def _bundle(params: SpaceParams, output: Path) -> SpaceRecord:
    champion = results.last_info(OUTPUT_DIR).get("champion") or {}
    key, version = champion.get("key"), champion.get("version")
    if not key or version is None or key != results.release_key(RELEASE_DIR):
        return SpaceRecord(state="nothing", why=f"{RELEASE_DIR} is not the champion's; a promotion here writes it",
                           key=key, version=version, serves=[], made_from=None)
    made_from, bundle = _made_from(key, params), output / "bundle"
    before = output / "space.json"
    if before.is_file() and (bundle / "validation.json").is_file():
        last = SpaceRecord.load(before)
        if last.made_from == made_from:
            return last
    for python in (BUILDER, SERVING):
        if not python.exists():
            raise InvalidParams(f"space.enabled: {python} is missing; run `make {python.parents[1]}/.ready`")
    for weights in (params.weights, ["safetensors"]):
        _prepare(bundle, weights, version)
        if _is_safe(bundle, params):
            serves = records.read_object(bundle / "validation.json")["serves"]
            return SpaceRecord(state="made", why=f"version {version} in {bundle}, {serves[0]}", key=key,
                               version=version, serves=serves, made_from=made_from)
        logger.warning("%s: UNSAFE with %s", bundle, " and ".join(weights))
    raise IntegrityError(f"{bundle}: UNSAFE even with the weights as released; {bundle}/validation.json says why")


def _made_from(key: str, params: SpaceParams) -> str:
    """Digest of all that a bundle depends on: the model, the settings, the tools and the rows that check it."""
    tools = [file for name in SOURCES for file in [SPACE / name, *sorted((SPACE / name).glob("*.py"))]]
    read = [[str(file), records.file_sha256(file)] for file in [*tools, ROWS] if file.is_file()]
    return records.digest_of([key, params.model_dump(), read])


def _prepare(bundle: Path, weights: Sequence[str], version: int) -> None:
    """Make a bundle of the release; raises IntegrityError if that fails."""
    code = _run(BUILDER, "prepare_assets.py", "--model", str(RELEASE_DIR), "--output", str(bundle), "--weights",
                ",".join(weights), "--version", str(version), "--questions", str(QUESTIONS))
    if code:
        raise IntegrityError(f"{bundle}: prepare_assets.py ended with {code}; see what it says above")


def _is_safe(bundle: Path, params: SpaceParams) -> bool:
    """Whether some of the bundle's weights are SAFE; raises IntegrityError if the check itself fails."""
    code = _run(Path(sys.executable), "validate_bundle.py", "--model", str(RELEASE_DIR), "--bundle", str(bundle),
                "--rows", str(params.rows), "--max-score-drop", str(params.max_score_drop))
    if code not in (0, IntegrityError.code):
        raise IntegrityError(f"{bundle}: validate_bundle.py ended with {code}; see what it says above")
    return code == 0


def _run(python: Path, tool: str, *arguments: str) -> int:
    command = [str(python), str(SPACE / tool), *arguments]
    return subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=2, check=False).returncode


if __name__ == "__main__":
    process.run(main)
