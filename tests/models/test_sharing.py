"""Processes that share work without a launcher to watch them, as those of different machines do."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from src.models import placement

PROCESS = """
import json, os
import torch
from src.models import placement
from src.core.errors import RunAgain
placement._LAUNCHER_SPEAKS = 0
placement.start()
rank, items = placement.state().process_index, list("abcdefg")
backend = torch.distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
found = [placement.own(items), placement.gather(placement.own(items)), placement.gather(["x"] if rank == 0 else [])]
print(json.dumps([*found, backend.options._timeout.days]), flush=True)
if rank == 1:
    os._exit(9)
try:
    placement.gather([])
except RunAgain as error:
    print(error)
"""


def test_alone_all_of_it_is_ones_own() -> None:
    placement.start()
    assert (placement.own("abc"), placement.gather("abc")) == ("abc", ["a", "b", "c"])


@pytest.fixture
def outputs() -> list[list[str]]:
    """What two processes say that meet over a port, each line of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS], stdout=subprocess.PIPE, text=True,
                         cwd=Path(__file__).parents[2],
                         env=os.environ | meeting | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    return [process.communicate(timeout=120)[0].splitlines() for process in processes]


def test_shares_are_gathered_and_a_lost_process_is_an_error_to_the_others(outputs: list[list[str]]) -> None:
    first, second = outputs
    gathered = ["a", "c", "e", "g", "b", "d", "f"]
    assert json.loads(first[0]) == [["a", "c", "e", "g"], gathered, ["x"], 30]
    assert json.loads(second[0]) == [["b", "d", "f"], gathered, ["x"], 30]
    assert first[1:] == ["another process of the stage is lost; run it again, it goes on from what is saved"]
