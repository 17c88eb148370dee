"""Make the champion's release a bundle to serve, and check it: results/space/. Off unless space.enabled says so."""

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
from src.core import records
from src.core.errors import IntegrityError, InvalidInput, InvalidParams
from src.core.params import SpaceParams, load_params
from src.core.records import OUTPUT_DIR, RELEASE_DIR, SpaceRecord
from utils import json_utils, process, results

OUTPUT = Path("results/space")
FETCHED = Path("results/champion")  # the champion's release, if results/release holds another model's
QUESTIONS, ROWS = Path("results/data/train.jsonl"), Path("results/data/evaluation.jsonl")
SPACE = Path("space")
BUILDER = SPACE / ".venv-builder/bin/python"
SERVING = SPACE / ".venv/bin/python"
SOURCES = ("prepare_assets.py", "validate_bundle.py", "files.py", "bundling", "serving", "requirements/builder.txt")
_KEY_ON_CARD = re.compile(r"\| promotion key \| `([0-9a-f]{64})` \|")
logger = logging.getLogger("champion")
PARSER = process.Arguments(description=__doc__)
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {records.CONFIG}")
PARSER.add_argument("--output-dir", type=Path, metavar="DIR", help=f"default {OUTPUT}")
PARSER.add_argument("--release", action="store_true", help="only print the champion's release and version, for "
                    f"prepare_assets.py; what results/release lacks is fetched from the registry to {FETCHED}")


def main() -> int:
    """Write space.json, and bundle/ if there is a champion's release; returns the exit code."""
    flags = PARSER.parse_args()
    config = flags.config or records.CONFIG
    if flags.release:
        folder, version = champions_release(config)
        process.say(f"--model {folder} --version {version}")
        return 0
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
    if not key or version is None or key != _key_of(RELEASE_DIR):
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


def champions_release(config: Path) -> tuple[Path, int]:
    """The folder of the champion's release, and the champion's version.

    The champion is the one that deployment_info.json names. If its release is not here, the ledger is asked for the
    champion and the registry for its weights. Raises InvalidInput if nothing was promoted.
    """
    info = results.last_info(OUTPUT_DIR)
    champion = (info.get("last_known") or info).get("champion") or {}  # last_known: by a deployment that failed
    if champion and (found := _release_of(champion["key"])):
        return found, champion["version"]
    otherwise = "run `make repro`, or serve another release with `make serve RELEASE=FOLDER`"
    if not info:
        raise InvalidInput(f"{OUTPUT_DIR / results.INFO}: missing, so no champion is known here; {otherwise}")

    from scripts.commands.services import managed_model
    from utils.tracking.registry import fetch_version

    model = managed_model(config, skip_hf_push=True, create=False)
    head = model.ledger.view().head
    if head is None:
        raise InvalidInput(f"{model.model_name}: the ledger in MLflow names no champion; {otherwise}")
    if found := _release_of(head.key):
        return found, head.version
    logger.info("fetching the champion, %s version %d, from the registry", model.model_name, head.version)
    with tempfile.TemporaryDirectory(prefix=f".release.{os.getpid()}.", dir=FETCHED.parent) as scratch:
        folder, identity = fetch_version(model.client, model.model_name, head.version, Path(scratch))
        if identity.digest() != head.model_digest:
            raise IntegrityError(f"{model.model_name} version {head.version}: is not the model that the ledger "
                                 "promoted; run `python scripts/status_script.py`")
        stated = {"key": head.key, "model_digest": head.model_digest, "model_name": model.model_name}
        json_utils.write_object(folder / records.CHAMPION_FILE, stated)
        json_utils.write_object(folder / "manifest.json", records.manifest(folder))
        shutil.rmtree(FETCHED, ignore_errors=True)
        folder.rename(FETCHED)
    return FETCHED, head.version


def _release_of(key: str) -> Path | None:
    return next((folder for folder in (RELEASE_DIR, FETCHED) if _key_of(folder) == key), None)


def _key_of(release: Path) -> str | None:
    """The promotion key of a release: champion.json's, or its card's if it was made before there was that file."""
    champion, card = release / records.CHAMPION_FILE, release / "README.md"
    if champion.is_file():
        return str(records.read_object(champion).get("key"))
    found = _KEY_ON_CARD.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    return found[1] if found else None


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
