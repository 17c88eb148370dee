"""JSON files written atomically; src.core.records reads them."""

import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from src.core.records import sync


def write_object(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically; an unchanged file keeps its bytes and its time."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def write_lines(path: Path, rows: Iterable[object]) -> None:
    """Write values as JSON Lines, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Replace a file by one rename, its bytes and its folder flushed; an equal file is left alone.

    The umask decides who may read it, as for any new file.
    """
    content = text.encode()
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _remove_leftovers(path: Path) -> None:
    """Temporary files of processes that were killed while they wrote this file."""
    for leftover in path.parent.glob(f".{path.name}.*.*"):
        if not Path("/proc", leftover.name.split(".")[-2]).exists():
            leftover.unlink(missing_ok=True)
