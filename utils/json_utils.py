"""JSON files written atomically, and JSON Lines; src.core.records reads objects."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from src.core.errors import InvalidInput
from src.core.records import parse_json, sync


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file; raises InvalidInput with the line number for anything else."""
    if not path.is_file():
        raise InvalidInput(f"{path}: missing; run `dvc repro` to write it afresh")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                row = parse_json(text)
            except (ValueError, RecursionError) as error:
                raise InvalidInput(f"{path}:{number}: not a JSON object: {error}") from None
            if not isinstance(row, dict):
                raise InvalidInput(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
            yield row


def write_object(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically; an unchanged file keeps its bytes and its time."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def write_lines(path: Path, rows: Iterable[object]) -> None:
    """Write values as JSON Lines, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Replace a file by one rename, its bytes and its folder flushed; an equal file is left alone."""
    content = text.encode()
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{os.getpid()}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)  # mkstemp gives 0600
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(path.parent)


def _remove_leftovers(path: Path) -> None:
    """Temporary files of processes that were killed while they wrote this file."""
    for leftover in path.parent.glob(f".{path.name}.*.*"):
        if not Path("/proc", leftover.name.split(".")[-2]).exists():
            leftover.unlink(missing_ok=True)
