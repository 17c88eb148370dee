"""The bundle in hand: whole, validated, and of which model. `python -m deploying.bundle assets` sees if it is whole."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploying.errors import BadInput, DeployError, Unsound

IDENTITY, VALIDATION = "identity.json", "validation.json"


@dataclass(frozen=True)
class Identity:
    """Which model answers; None for what nobody recorded."""

    model: str
    version: int | None
    commit: str | None
    digest: str | None = None

    @property
    def shown(self) -> str:
        """As a person reads it."""
        return f"{self.model} {f'v{self.version}' if self.version else 'of unknown version'}"

    @property
    def answers(self) -> dict[str, Any]:
        """What /healthz has to say."""
        return {"model": self.model, "version": self.version, "commit": self.commit, "digest": self.digest}


def read(text: str, where: str) -> Identity:
    """The identity in a bundle's identity.json; raises BadInput."""
    found = _object(text, where)
    if not isinstance(found.get("model"), str):
        raise BadInput(f"{where}: names no model; run prepare_assets.py again")
    return Identity(found["model"], found.get("version"), found.get("commit"), found.get("model_digest"))


def whole(folder: Path) -> Identity:
    """The bundle's identity, once each of its files has the sha256 that it states.

    Raises BadInput where there is no bundle, Unsound where it is another one than was made or may not be served.
    """
    path = folder / IDENTITY
    if not path.is_file():
        raise BadInput(f"{path}: there is no bundle; make one with prepare_assets.py")
    text = path.read_text(encoding="utf-8")
    found = _object(text, str(path))
    if not found.get("weights"):
        raise Unsound(f"{folder}: none of its weights is SAFE, see {VALIDATION}; deploy another bundle")
    stated = found.get("sha256")
    if not isinstance(stated, dict) or not stated:
        raise BadInput(f"{path}: lists no files; run prepare_assets.py again")
    there = {each.relative_to(folder).as_posix(): each for each in folder.rglob("*") if each.is_file()}
    for name in (IDENTITY, VALIDATION):
        there.pop(name, None)
    wrong = [name for name in sorted(stated.keys() | there.keys())
             if name not in stated or name not in there or _sha256(there[name]) != stated[name]]
    if wrong:
        raise Unsound(f"{folder}: {', '.join(wrong[:5])}: not what {IDENTITY} says; run prepare_assets.py again")
    return read(text, str(path))


def validated(folder: Path) -> None:
    """Raise Unsound unless validate_bundle.py found this very bundle SAFE."""
    path, again = folder / VALIDATION, "run validate_bundle.py"
    if not path.is_file():
        raise Unsound(f"{path}: the bundle was not validated; {again}")
    found = _object(path.read_text(encoding="utf-8"), str(path))
    identity = _object((folder / IDENTITY).read_text(encoding="utf-8"), str(folder / IDENTITY))
    if found.get("verdict") != "SAFE":
        raise Unsound(f"{path}: the verdict is {found.get('verdict')}; see its reasons, and deploy another bundle")
    if (found.get("model_digest"), found.get("serves")) != (identity.get("model_digest"), identity.get("weights")):
        raise Unsound(f"{path}: is about another bundle; {again}")


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{where}: is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadInput(f"{where}: expected an object")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """The image's build step."""
    try:
        identity = whole(Path(sys.argv[1]))
    except DeployError as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    sys.stdout.write(f"{identity.shown}: whole\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
