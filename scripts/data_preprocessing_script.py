"""Clean, de-duplicate and split the raw conversations."""

import logging
from pathlib import Path

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core.params import load_params
from src.core.records import CONFIG, DatasetRef, Datasets, file_sha256
from utils import process

logger = logging.getLogger("champion")

OUTPUT = Path("results/data")

PARSER = process.Arguments(description=__doc__)
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {CONFIG}")


def main() -> int:
    """Write the three splits and datasets.json; returns the exit code."""
    flags = PARSER.parse_args()

    from src.data import prepare
    from utils import environment, json_utils

    params = load_params(flags.config or CONFIG)
    environment.will_push(params.deployment, skip_hf_push=False)  # a missing token is better known now than at the end
    source = Path(params.data.path)
    raw = prepare.read(source, params.data)
    for problem in raw.bad:
        logger.warning("%s", problem)
    refs = {"raw": DatasetRef(path=source.as_posix(), sha256=file_sha256(source), rows=len(raw.rows))}
    for part, rows in prepare.split(raw.rows, params.data).items():
        path = OUTPUT / f"{part}.jsonl"
        json_utils.write_lines(path, [row.as_json() for row in rows])
        refs[part] = DatasetRef(path=path.as_posix(), sha256=file_sha256(path), rows=len(rows))
    json_utils.write_object(OUTPUT / "datasets.json", Datasets(**refs).model_dump(mode="json"))
    sizes = ", ".join(f"{refs[part].rows:,} {part}" for part in prepare.PARTS)
    left_out = [f"{count:,} {what}{'' if count == 1 else 's'}"
                for count, what in ((raw.duplicates, "duplicate"), (len(raw.bad), "unusable row")) if count]
    process.say(f"data_preprocessing: {len(raw.rows):,} conversations of {source}: {sizes}"
                + (f"; left out: {', '.join(left_out)}" if left_out else ""))
    return 0


if __name__ == "__main__":
    process.run(main)
