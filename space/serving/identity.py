"""A bundle's identity.json: which model the bundle holds, and the check that its files are the ones it states.

Only the standard library is imported: the image checks its bundle before anything is installed.

    python -m serving.identity assets
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from files import sha256, weight_count, write_object
from serving.settings import IDENTITY, SettingError

VALIDATION = "validation.json"
CHAMPION = "champion.json"  # in a release
_STAND_IN = "pocket"  # the base that the pipeline builds itself where nothing is downloaded


class BundleError(SettingError):
    """There is no bundle, or its identity cannot be read; the text says what to do."""

    code = 3


class UnsoundBundle(BundleError):
    """The bundle is not the one that was made, or it may not be served."""

    code = 5


@dataclass(frozen=True)
class ServedModel:
    """Which model answers, as /healthz states it; None for what nobody recorded."""

    model: str
    version: int | None
    commit: str | None
    digest: str | None

    @property
    def label(self) -> str:
        """The version as a person reads it."""
        return f"v{self.version}" if self.version else (self.commit or self.digest or "unversioned")[:12]


    @property
    def title(self) -> str:
        """Name and version in words, for the page and the terminal."""
        return f"{self.model} version {self.version}" if self.version else f"{self.model} ({self.label})"


@dataclass(frozen=True)
class Origin:
    """How large the model is, and the base it was fine-tuned from; None for what an older release does not state."""

    parameters: int | None = None
    base_model: str | None = None

    @classmethod
    def of_release(cls, folder: Path) -> "Origin":
        """The origin of a release on this disk; raises BundleError for a champion.json that cannot be read."""
        path = folder / CHAMPION
        stated = parse_object(path.read_text(encoding="utf-8"), path) if path.is_file() else {}
        return cls(weight_count(folder), stated.get("base_model"))

    @property
    def sentence(self) -> str:
        """What somebody should know before they trust an answer; empty if nothing is known."""
        size = _rounded(self.parameters) if self.parameters else ""
        if self.base_model == _STAND_IN:
            return (f"A stand-in model{f' with {size} parameters' if size else ''}, made in minutes on a laptop: "
                    "expect mistakes.")
        parts = [f"{size} parameters" if size else "", f"fine-tuned from {self.base_model}" if self.base_model else ""]
        told = ", ".join(filter(None, parts))
        return f"{told[0].upper()}{told[1:]}." if told else ""


def _rounded(count: int) -> str:
    """A number of parameters as `2.0 million` or `1.1 billion`, as on the model card."""
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.1f} {name}"
    return f"{count:,}"


@dataclass(frozen=True)
class BundleIdentity:
    """What identity.json states. A bundle without weights is one whose weights were all found UNSAFE."""

    model: ServedModel
    weights: tuple[str, ...]  # of int8, int4 and safetensors; the first one is served
    sizes: Mapping[str, int]  # bytes by path in the bundle
    sha256: Mapping[str, str]
    origin: Origin = Origin()  # which bundles made before it was recorded do not state

    @classmethod
    def parse(cls, text: str, where: object) -> "BundleIdentity":
        """The identity in a text from `where`; raises BundleError."""
        found = parse_object(text, where)
        if not isinstance(found.get("model"), str):
            raise BundleError(f"{where}: names no model; run prepare_assets.py again")
        model = ServedModel(found["model"], found.get("version"), found.get("commit"), found.get("model_digest"))
        origin = Origin(found.get("parameters"), found.get("base_model"))
        return cls(model, tuple(found.get("weights", ())), found.get("sizes", {}), found.get("sha256", {}), origin)

    @classmethod
    def load(cls, folder: Path) -> "BundleIdentity":
        """The identity of the bundle in a folder; raises BundleError."""
        path = folder / IDENTITY
        if not path.is_file():
            raise BundleError(f"{path}: there is no bundle; run prepare_assets.py")
        return cls.parse(path.read_text(encoding="utf-8"), path)

    @classmethod
    def of(cls, folder: Path, model: ServedModel, weights: Sequence[str], origin: Origin) -> "BundleIdentity":
        """The identity of the files that lie in a folder now."""
        there = _files(folder)
        return cls(model, tuple(weights), {name: path.stat().st_size for name, path in there.items()},
                   {name: sha256(path) for name, path in there.items()}, origin)

    def write(self, folder: Path) -> None:
        """Write identity.json."""
        model = self.model
        write_object(folder / IDENTITY, {
            "model": model.model, "version": model.version, "commit": model.commit, "model_digest": model.digest,
            "base_model": self.origin.base_model, "parameters": self.origin.parameters,
            "weights": self.weights, "sizes": self.sizes, "sha256": self.sha256})

    def differences(self, folder: Path, *, contents: bool) -> list[str]:
        """One line for each file that is missing or has another size; with `contents`, another digest or no entry."""
        there = _files(folder)
        stated = self.sha256 if contents else self.sizes
        lines = [f"{name} is missing" for name in sorted(stated.keys() - there)]
        if contents:
            lines += [f"{name} is not listed" for name in sorted(there.keys() - stated)]
            return lines + [f"{name} was changed" for name in sorted(stated.keys() & there)
                            if sha256(there[name]) != stated[name]]
        sizes = {name: there[name].stat().st_size for name in sorted(stated.keys() & there)}
        return lines + [f"{name} has {size} bytes, not {stated[name]}" for name, size in sizes.items()
                        if size != stated[name]]

    def check_files(self, folder: Path, *, contents: bool) -> None:
        """Raise UnsoundBundle when a file differs from what was stated."""
        if different := self.differences(folder, contents=contents):
            raise UnsoundBundle(f"{folder}: not what {IDENTITY} says: {', '.join(different[:5])}; "
                                "run prepare_assets.py again")


def parse_object(text: str, where: object) -> dict[str, Any]:
    """A JSON object; raises BundleError."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BundleError(f"{where}: is no JSON: {error}; run prepare_assets.py again") from error
    if not isinstance(found, dict):
        raise BundleError(f"{where}: expected an object; run prepare_assets.py again")
    return found


def _files(folder: Path) -> dict[str, Path]:
    """The files of a bundle by their path in it, apart from the two that describe them."""
    there = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in there.items() if name not in (IDENTITY, VALIDATION)}


def check_safe(weights: Sequence[str], folder: Path) -> None:
    """Raise UnsoundBundle when validate_bundle.py found all weights of a bundle UNSAFE."""
    if not weights:
        raise UnsoundBundle(f"{folder}: none of its weights is SAFE, see {VALIDATION}; make it again with "
                            "prepare_assets.py --weights safetensors")


def verified(folder: Path) -> BundleIdentity:
    """The identity of a bundle that may be served, every digest checked; raises BundleError."""
    identity = BundleIdentity.load(folder)
    check_safe(identity.weights, folder)
    if not identity.sha256:
        raise BundleError(f"{folder / IDENTITY}: lists no files; run prepare_assets.py again")
    identity.check_files(folder, contents=True)
    return identity


def main() -> int:
    """The image's build step."""
    try:
        model = verified(Path(sys.argv[1])).model
    except BundleError as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    sys.stdout.write(f"{model.model} {model.label}: complete and unchanged\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
