"""JSON files, read with suspicion and written atomically."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from src.core.errors import InvalidInput

MAX_BYTES = 16 * 1024 * 1024


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small UTF-8 file (a byte-order mark is accepted).

    Raises InvalidInput for a missing, oversized, malformed or too deeply nested file, for another top level than
    an object, a key given twice, NaN and infinity.
    """
    text = _read_text(path)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        raise InvalidInput(f"{path}: not JSON at byte {offset}: {error.msg}; {_AGAIN}") from None
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InvalidInput(f"{path}: {what}; {_AGAIN}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}: expected a JSON object at the top, found {type(value).__name__}; {_AGAIN}")
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file; raises InvalidInput with the line number for anything else."""
    if not path.is_file():
        raise InvalidInput(f"{path}: missing; {_AGAIN}")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                row = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
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
    sync_folder(path.parent)


def _remove_leftovers(path: Path) -> None:
    """Temporary files of processes that were killed while they wrote this file."""
    for leftover in path.parent.glob(f".{path.name}.*.*"):
        if not Path("/proc", leftover.name.split(".")[-2]).exists():
            leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_AGAIN = "run `dvc repro` to write it afresh"


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InvalidInput(f"{path}: larger than {MAX_BYTES} bytes; {_AGAIN}")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise InvalidInput(f"{path}: missing; {_AGAIN}") from None
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}; {_AGAIN}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8 at byte {error.start}; {_AGAIN}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} is given twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON or a score can hold")
