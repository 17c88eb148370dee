"""The files of a Space: what `.dockerignore` lets into the image, and what the Hub reads beside it."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

VARIABLES = "variables.json"
ASSETS = "assets/"
_AROUND = ("Dockerfile", ".dockerignore", "README.md", "Procfile", VARIABLES)
_OF_FALLBACK = (".dockerignore", "README.md", "Procfile", VARIABLES, "questions.json")
_TOLD = (f"{ASSETS}identity.json", f"{ASSETS}questions.json")
_SKIPPED = (".venv*", "__pycache__", ".git")  # large, and never let through


def of_app(root: Path, bundle: Path) -> dict[str, Path]:
    """Path in the Space to the file here, for the whole app; the bundle becomes assets/."""
    rules = _rules((root / ".dockerignore").read_text(encoding="utf-8"))
    found = {name: path for name, path in _walk(root) if not name.startswith(ASSETS)} | _placed(bundle)
    image = {name: path for name, path in found.items() if _let_through(PurePosixPath(name), rules)}
    return dict(sorted((image | _there(root, _AROUND)).items()))


def of_fallback(root: Path, bundle: Path | None) -> dict[str, Path]:
    """The same for the fallback as app.py, with an image that needs no package and so has little to fail at."""
    told = {name: path for name, path in _placed(bundle).items() if name in _TOLD} if bundle else {}
    return _there(root, _OF_FALLBACK) | told | {"app.py": root / "app_minimal_fallback.py",
                                                "Dockerfile": root / "fallback.Dockerfile"}


def digests(path: Path) -> tuple[str, str]:
    """Git's id and the sha256 of a file: the Hub states the first for a small file, the second for a large one."""
    git, plain = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            git.update(block)
            plain.update(block)
    return git.hexdigest(), plain.hexdigest()


def _there(root: Path, names: Iterable[str]) -> dict[str, Path]:
    return {name: root / name for name in names if (root / name).is_file()}


def _placed(bundle: Path) -> dict[str, Path]:
    return {ASSETS + name: path for name, path in _walk(bundle)}


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not any(fnmatch(name, skipped) for skipped in _SKIPPED)]
        for name in files:
            path = Path(folder, name)
            yield path.relative_to(root).as_posix(), path


def _rules(text: str) -> list[tuple[str, bool]]:
    """Patterns with whether they let through; the last that fits decides."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.removeprefix("!").rstrip("/"), line.startswith("!")) for line in lines]


def _let_through(path: PurePosixPath, rules: list[tuple[str, bool]]) -> bool:
    through = True
    for pattern, lets in rules:
        if any(_fits(each, pattern) for each in (path, *path.parents[:-1])):
            through = lets
    return through


def _fits(path: PurePosixPath, pattern: str) -> bool:
    """As far as this folder's file goes: `*`, a path, and `**/NAME` anywhere."""
    return fnmatch(path.name if pattern.startswith("**/") else path.as_posix(), pattern.removeprefix("**/"))
