"""The whole pipeline at full size, from data to release: time and peak memory of each stage.

    python -m benchmarks.full_size [--layers 22] [--base FOLDER]

A copy of this repository is run stage by stage (`dvc repro --single-item`) under the profile tinyllama, on a base of
TinyLlama's shape with random weights in a local folder: few conversations, so two steps of training, few rows, short
answers, no Hub. All that depends on the model's size is as it is for real. Seconds are by the clock and include what
DVC does, hashing and caching of each stage's files above all. The last line is the largest peak as a share of 24 GB.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import measure, scratch

STAGES = ("data_preprocessing", "base_model", "fine_tuning", "evaluation", "deployment", "report")
ALLOWED_MB = 24_000
ROWS = 80
CHANGES = {
    "profile": "tinyllama",
    "fine_tuning": {"epochs": 1},
    "evaluation": {"max_rows": 8},
    "deployment": {"verified_rows": 4},
    "profiles": {"tinyllama": {"model": {"base_model": "base"}, "fine_tuning": {"epochs": 1},
                               "evaluation": {"max_new_tokens": 48},
                               "deployment": {"huggingface": {"push_to_hub": False}}}},
}

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--layers", type=int, default=22)
PARSER.add_argument("--base", type=Path, metavar="FOLDER", help="made by benchmarks.tinyllama; default: made anew")
measure.add_flags(PARSER)


def main() -> None:
    """Make the copy and the base, run each stage, and print the table."""
    flags = PARSER.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="champion-full-size-", dir=flags.base and flags.base.parent) as name:
        folder = Path(name)
        scratch.make(folder, CHANGES, rows=ROWS)
        if flags.base:
            (folder / "base").symlink_to(flags.base.resolve())
        else:
            measure.run([sys.executable, "-m", "benchmarks.tinyllama", str(folder / "base"), "--layers",
                         str(flags.layers)])
        for stage in STAGES:
            done = scratch.run(folder, "dvc", "repro", "--single-item", stage)
            print(f"{stage}: {done.seconds:.1f} s, peak {done.peak_mb:.0f} MB", file=sys.stderr, flush=True)
            rows.append(measure.row(f"{stage}, s", [done.seconds], [done.peak_mb]))
        check(folder)
    peak = max(one.peak_mb or 0 for one in rows)
    total = sum(one.value for one in rows)
    measure.finish("full_size", [*rows, measure.row("all stages, s", [total], [peak]),
                                 measure.ratio("largest peak to 24 GB", [peak], [ALLOWED_MB])], flags.json)
    if peak >= ALLOWED_MB:
        raise SystemExit(f"a stage takes {peak:.0f} MB, {ALLOWED_MB} are allowed")


def check(folder: Path) -> None:
    """Raise unless the deployment promoted, and its release is whole."""
    from src.core.records import read_object
    from src.promotion.release import check_release

    info = read_object(folder / "results/deployment/deployment_info.json")
    if info["result"] != "promoted":
        raise SystemExit(f"the deployment ended {info['result']}: {info['reason']}")
    check_release(folder / "results/release")


if __name__ == "__main__":
    main()
