"""Print the champion's release and version, as prepare_assets.py takes them; fetch the release if it is not here."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core import records
from src.core.errors import IntegrityError, InvalidInput
from src.core.records import OUTPUT_DIR, RELEASE_DIR
from utils import json_utils, process, results

FETCHED = Path("results/champion")  # the champion's release, if results/release holds another model's
logger = logging.getLogger("champion")
PARSER = process.Arguments(description=__doc__)
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {records.CONFIG}")


def main() -> int:
    """Print the two flags; returns the exit code."""
    folder, version = champions_release(PARSER.parse_args().config or records.CONFIG)
    process.say(f"--model {folder} --version {version}")
    return 0


def champions_release(config: Path) -> tuple[Path, int]:
    """The folder of the champion's release, and the champion's version.

    The champion is the one that deployment_info.json names. If its release is not here, the ledger is asked for the
    champion and the registry for its weights. Raises InvalidInput if nothing was promoted.
    """
    info = results.last_info(OUTPUT_DIR)
    version, key = results.recorded(info)
    if version and key and (found := _release_of(key)):
        return found, version
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
                                 "promoted; run `champion status`")
        stated = {"key": head.key, "model_digest": head.model_digest, "model_name": model.model_name,
                  "base_model": identity.base_name}
        json_utils.write_object(folder / records.CHAMPION_FILE, stated)
        json_utils.write_object(folder / "manifest.json", records.manifest(folder))
        shutil.rmtree(FETCHED, ignore_errors=True)
        folder.rename(FETCHED)
    return FETCHED, head.version


def _release_of(key: str) -> Path | None:
    return next((folder for folder in (RELEASE_DIR, FETCHED) if results.release_key(folder) == key), None)


if __name__ == "__main__":
    process.run(main)
