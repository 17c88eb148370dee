"""Which steps a promotion took, as evidence: nothing reads it, and deleting it changes nothing."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from src.promotion import Step

FOLDER = Path(".promotion")


class Journal:
    """Appends to .promotion/<first 12 of the key>/journal.jsonl, flushed line by line."""

    def __init__(self, key: str) -> None:
        self._path = FOLDER / key[:12] / "journal.jsonl"

    def note(self, step: Step) -> None:
        """Write that a step is about to be taken."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = {"time": datetime.now(UTC).isoformat(), "pid": os.getpid(), "step": step.value}
        with self._path.open("a", encoding="ascii") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Trace:
    """The last step that a journal tells of; running says whether its process still is."""

    key: str
    step: Step
    time: str
    pid: int
    running: bool


def traces() -> Iterator[Trace]:
    """The last line of every journal on this machine; one that a crash cut short is passed over."""
    for path in sorted(FOLDER.glob("*/journal.jsonl")):
        for text in reversed(path.read_text(encoding="ascii", errors="replace").splitlines()):
            try:
                line = json.loads(text)
                yield Trace(path.parent.name, Step(line["step"]), str(line["time"]), int(line["pid"]),
                            Path("/proc", str(line["pid"])).exists())
            except (ValueError, KeyError, TypeError):
                continue
            break
