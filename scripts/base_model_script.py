"""Put the base model in place: build pocket, take over a folder, or fetch a Hub snapshot."""

import shutil
from pathlib import Path

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core.params import load_params
from src.core.records import BASE_MODEL, CONFIG, read_lines
from utils import process

FOLDER = Path("results/base_model")
TRAIN = Path("results/data/train.jsonl")

PARSER = process.Arguments(description=__doc__)
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {CONFIG}")


def main() -> int:
    """Write results/base_model and its record; returns the exit code."""
    flags = PARSER.parse_args()

    from src.data.rows import parse_rows
    from src.models import base_model
    from utils import huggingface_utils, json_utils

    params = load_params(flags.config or CONFIG).model
    shutil.rmtree(FOLDER, ignore_errors=True)
    name, revision = params.base_model, base_model.NO_REVISION
    if name == base_model.POCKET:
        rows = parse_rows(read_lines(TRAIN), where=TRAIN, max_rows=0)
        size = base_model.build_pocket([row.conversation() for row in rows], params.pocket, FOLDER)
        told = f'built the stand-in model "pocket" ({size / 1e6:.1f} M parameters)'
    elif Path(name).is_dir():
        base_model.take_over(Path(name), FOLDER)
        told = f"copied from {name}"
    else:
        revision = huggingface_utils.fetch_snapshot(name, params.revision, FOLDER)
        base_model.check(FOLDER)
        told = f"fetched {name}, revision {revision[:8]}"
    reference = base_model.reference(FOLDER, name=name, revision=revision)
    json_utils.write_object(BASE_MODEL, reference.model_dump(mode="json"))
    process.say(f"base_model: {told}")
    return 0


if __name__ == "__main__":
    process.run(main)
