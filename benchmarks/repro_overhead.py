"""What `dvc repro` adds to its stages' own work, and what it costs where nothing changed.

    python -m benchmarks.repro_overhead [--rounds 3]

A copy of this repository, with few conversations and the smallest pocket model. `by hand` runs each stage's command as
dvc.yaml gives it, one after the other; `dvc` is one forced `dvc repro`; `no-op` a `dvc repro` after it, in which only
the deployment runs, since it always does, and it promotes nothing. In turns, each time in a fresh copy, with
MLflow's database made beforehand. Seconds are by the clock. The last line is the ratio of dvc to by hand.
"""

import argparse
import shlex
import tempfile
from pathlib import Path

from benchmarks import measure, scratch

ROWS = 60
CHANGES = {
    "model": {"pocket": {"hidden_size": 32, "layers": 1, "epochs": 1}},
    "fine_tuning": {"epochs": 1, "lora": {"r": 2, "alpha": 4}},
    "evaluation": {"max_new_tokens": 16},
    "deployment": {"verified_rows": 2},
}

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--rounds", type=int, default=3)
measure.add_flags(PARSER)


def by_hand(folder: Path) -> list[measure.Measured]:
    """Each stage's command, in DVC's order."""
    told = scratch.run(folder, "dvc", "repro", "--dry", "--force").output.splitlines()
    return [scratch.run(folder, *shlex.split(line.removeprefix("> "))) for line in told if line.startswith("> ")]


def by_dvc(folder: Path) -> list[measure.Measured]:
    """All of it at once, then once more."""
    return [scratch.run(folder, "dvc", "repro", *flags) for flags in (("--force",), ())]


def fresh(side: str) -> list[measure.Measured]:
    """One side in a copy of its own."""
    with tempfile.TemporaryDirectory(prefix="champion-repro-") as name:
        folder = Path(name)
        scratch.make(folder, CHANGES, rows=ROWS)
        scratch.run(folder, "python", "-c", "import mlflow; mlflow.MlflowClient('sqlite:///mlflow.db').get_run")
        return by_hand(folder) if side == "hand" else by_dvc(folder)


def main() -> None:
    """Both sides in turns."""
    flags = PARSER.parse_args()
    found = measure.interleave({"hand": lambda: fresh("hand"), "dvc": lambda: fresh("dvc")}, flags.rounds)
    hand = [sum(one.seconds for one in stages) for stages in found["hand"]]
    whole, idle = ([both[place].seconds for both in found["dvc"]] for place in (0, 1))
    measure.finish("repro_overhead", [
        measure.row("stages by hand, s", hand, [one.peak_mb for stages in found["hand"] for one in stages]),
        measure.row("dvc repro, s", whole, [both[0].peak_mb for both in found["dvc"]]),
        measure.row("dvc repro, nothing changed, s", idle, [both[1].peak_mb for both in found["dvc"]]),
        measure.row("overhead of dvc repro, s", [a - b for a, b in zip(whole, hand, strict=True)]),
        measure.ratio("dvc repro to its stages by hand", whole, hand),
    ], flags.json)


if __name__ == "__main__":
    main()
