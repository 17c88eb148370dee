"""Hash, read and write files. What others read is written whole or not at all."""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

JsonLine = dict[str, Any]
_LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file; its own library takes no more


def shown(path: Path) -> Path:
    """A path as a person reads it: from the working directory on, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def sha256(path: Path) -> str:
    """The digest of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def foreign_weights(folder: Path) -> list[str]:
    """What the weight indexes of a folder name apart from files of that folder; transformers would load it."""
    foreign = []
    for index in sorted(folder.glob("*.safetensors.index.json")):
        found = json.loads(index.read_text(encoding="utf-8"))
        weight_map = found.get("weight_map") if isinstance(found, dict) else None
        named = weight_map.values() if isinstance(weight_map, dict) else [weight_map]
        foreign += [f"{index}: names {name!r:.140}" for name in named
                    if not isinstance(name, str) or name != Path(name).name or not (folder / name).is_file()]
    return foreign


def weight_count(folder: Path) -> int | None:
    """How many numbers the weight files of a release hold, by their headers; None if there are none to be read."""
    count = 0
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(min(size, _LONGEST_HEADER)))
            except ValueError:  # the engine says what is wrong with such a file
                return None
        count += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return count or None


def write_text(path: Path, text: str) -> None:
    """Write a temporary file beside the target, flush it to disk, and rename it over the target."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:  # the umask decides who may read it
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_object(path: Path, value: Mapping[str, Any]) -> None:
    """The same for JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_lines(path: Path) -> list[JsonLine]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Iterable[JsonLine]) -> None:
    """Write a file of JSON lines, in place."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
