"""The engine's process: `python -m serving.worker FOLDER THREADS CONCURRENCY`.

Lines of JSON come on stdin: {"start": 1, "prompt": [...], "options": {...}} and {"stop": 1}. Lines of JSON go to
stdout: {"name": ...} or {"error": ...} once the weights are loaded, then after each step a list of pieces. It ends with
stdin.
"""

import ctypes
import json
import os
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from serving.engine import EngineError, Options, Piece
from serving.settings import SettingError

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class Model(Protocol):
    """Weights, and the answers that they are generating."""

    name: str

    def warm_up(self) -> None:
        """What the first answer would have to wait for."""

    def start(self, number: int, prompt: list[int], options: Options) -> None:
        """Begin an answer; raises EngineError."""

    def stop(self, number: int) -> None:
        """Give up an answer, if it is still under way."""

    def idle(self) -> bool:
        """Whether no answer is under way."""

    def step(self) -> list[Piece]:
        """The next token of every answer."""


def load(folder: Path, threads: int, concurrency: int) -> Model:
    """The model in a folder: OpenVINO's, or as it was released; raises SettingError."""
    if (folder / "openvino_model.xml").is_file():
        from serving.openvino_model import OpenVinoModel

        return OpenVinoModel(folder, threads=threads, concurrency=concurrency)
    from serving.transformers_model import TransformersModel

    return TransformersModel(folder, threads=threads)


def main() -> int:
    """Load the weights, then answer until stdin ends."""
    _end_with_parent()
    told = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what libraries print is no answer

    def tell(message: object) -> None:
        told.write(json.dumps(message) + "\n")
        told.flush()

    folder, threads, concurrency = sys.argv[1:]
    try:
        model = load(Path(folder), int(threads), int(concurrency))
    except SettingError as error:
        tell({"error": str(error)})
        return 2
    inbox: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    try:
        tell({"name": model.name})
        model.warm_up()  # while the port opens
        threading.Thread(target=_receive, args=(inbox,), name="inbox", daemon=True).start()
        while True:
            while model.idle() or not inbox.empty():
                if (message := inbox.get()) is None:
                    return 0
                if refused := _follow(model, message):
                    tell([asdict(refused)])
            if pieces := model.step():
                tell([asdict(piece) for piece in pieces])
    except BrokenPipeError:  # the app is gone
        return 0


def _end_with_parent() -> None:
    """Have Linux kill this process when the app ends: while weights load, nobody reads that stdin has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _receive(inbox: SimpleQueue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        inbox.put(json.loads(line))
    inbox.put(None)


def _follow(model: Model, message: dict[str, Any]) -> Piece | None:
    if "stop" in message:
        model.stop(message["stop"])
        return None
    try:
        model.start(message["start"], message["prompt"], Options(**message["options"]))
    except EngineError as error:
        return Piece(message["start"], error=str(error))
    return None


if __name__ == "__main__":
    sys.exit(main())
