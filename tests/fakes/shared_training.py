"""One process of a training on the tiny model, as a launcher starts it: trains, and the first writes its losses.

    accelerate launch ... tests/fakes/shared_training.py FOLDER BASE CHANGES

Given `killed`, the second process dies half-way, in the second epoch.
"""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from transformers import Trainer

from tests.training.test_fine_tuning import Run
from utils import process

FOLDER, BASE, CHANGES = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])


def main() -> int:
    """Train; returns the exit code."""
    process.set_up()
    if "killed" in sys.argv and not process.is_first():
        step = Trainer.training_step

        def dying(self: Trainer, *inputs: object, **options: object) -> object:
            if self.state.epoch > 1.5:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *inputs, **options)

        Trainer.training_step = dying
    run = Run(FOLDER, BASE, **CHANGES)
    run.train = run.train[:24]  # whole steps
    run.params = run.params.model_copy(update={"lora": run.params.lora.model_copy(update={"dropout": 0.0})})
    curve = run.start()
    if process.is_first():
        (FOLDER / "curve.json").write_text(json.dumps([asdict(epoch) for epoch in curve]))
    return 0


if __name__ == "__main__":
    process.run(main)
