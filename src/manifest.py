"""A folder as the sha256 of each of its files, and that as one digest."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from src.errors import IntegrityError
from src.records import digest_of


def file_sha256(path: Path) -> str:
    """Sha256 (hex) of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(folder: Path) -> dict[str, str]:
    """POSIX path below the folder to sha256, sorted, for every regular file.

    Raises IntegrityError for a link (what it points to could change behind the digest) and for an empty folder.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise IntegrityError(f"{path}: is a link; copy the file into place")
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = file_sha256(path)
    if not found:
        raise IntegrityError(f"{folder}: holds no file; run `dvc repro` to write it afresh")
    return found


def tree_digest(files: Mapping[str, str]) -> str:
    """One sha256 (hex) of a manifest: equal digests mean equal names and bytes."""
    return digest_of(dict(files))
