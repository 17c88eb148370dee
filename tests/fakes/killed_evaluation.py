"""The evaluation stage in a process of its own that is killed: `-m tests.fakes.killed_evaluation MOMENT BATCHES RANK`.

SIGKILL strikes while the batch after so many is being kept: `before` it is written, when half of its line is (`torn`),
or `after` it; or, with `records`, between predictions.jsonl and the report. With `hangs` nothing strikes: the batch is
waited for in vain. Of several processes it befalls the one of this rank.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn
from unittest import mock

from scripts import evaluation_script
from src.evaluation.predictions import AnsweredBatch
from utils import json_utils, process
from utils.answers import PartialAnswers


def main() -> None:
    moment, batches, killed = sys.argv[1], int(sys.argv[2]), sys.argv[3] == os.environ.get("RANK", "0")
    keep = PartialAnswers.add
    kept = 0

    def add(partial: PartialAnswers, batch: AnsweredBatch) -> None:
        nonlocal kept
        kept += 1
        if kept <= batches:
            return keep(partial, batch)
        if moment == "hangs":
            time.sleep(600)
        if moment == "after":
            keep(partial, batch)
        if moment == "torn":
            with partial._path.open("ab") as file:
                file.write(batch.model_dump_json().encode()[:-20])
        _die()

    def write_object(_path: Path, _value: object) -> NoReturn:
        _die()

    if killed and moment == "records":
        mock.patch.object(json_utils, "write_object", write_object).start()
    elif killed:
        mock.patch.object(PartialAnswers, "add", add).start()
    sys.argv = ["evaluation_script.py"]
    process.run(evaluation_script.main)


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed")


if __name__ == "__main__":
    main()
