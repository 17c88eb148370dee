"""A Dockerfile as data, and its COPY steps done by hand: where no engine runs, this is how its image is had."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


class BuildError(Exception):
    """What an engine would end the build with."""


@dataclass(frozen=True)
class Step:
    """WORD --flag=value argument argument, in the exec form or not."""

    word: str
    flags: dict[str, str]
    text: str

    @property
    def arguments(self) -> list[str]:
        return list(json.loads(self.text)) if self.text.startswith("[") else self.text.split()


@dataclass(frozen=True)
class Stage:
    base: str
    name: str
    steps: tuple[Step, ...]

    def all(self, word: str) -> list[Step]:
        return [step for step in self.steps if step.word == word]

    def one(self, word: str) -> Step:
        (step,) = self.all(word)
        return step

    @property
    def environment(self) -> dict[str, str]:
        return dict(each.split("=", 1) for step in self.all("ENV") for each in step.arguments)


def stages(text: str) -> tuple[list[Step], list[Stage]]:
    """What stands before the first FROM, and the stages."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    steps = [_step(line) for line in re.sub(r"\\\n\s*", "", lines).splitlines() if line.strip()]
    starts = [number for number, step in enumerate(steps) if step.word == "FROM"]
    found = []
    for start, end in zip(starts, [*starts[1:], len(steps)], strict=True):
        base, *name = steps[start].arguments
        found.append(Stage(base, name[1] if name else "", tuple(steps[start + 1:end])))
    return steps[:starts[0]], found


def context(folder: Path) -> list[str]:
    """The files that an engine lets into a build, by Docker's own reading of .dockerignore."""
    from docker.utils.build import exclude_paths  # type: ignore[import-untyped]

    ignored = (folder / ".dockerignore").read_text().splitlines() if (folder / ".dockerignore").exists() else []
    found = exclude_paths(str(folder), [line for line in ignored if line and not line.startswith("#")])
    return sorted(path for path in found if (folder / path).is_file() and path != "Dockerfile")


def image(folder: Path, target: Path) -> tuple[Path, Stage]:
    """Do every stage's COPY steps below target; the last stage's working folder, and that stage."""
    shutil.rmtree(target, ignore_errors=True)
    sources = target / "context"
    for name in context(folder):
        _copy(folder / name, sources / name)
    found = stages((folder / "Dockerfile").read_text())[1]
    for number, stage in enumerate(found):
        place = Path("/")
        for step in stage.steps:
            place = place / step.text if step.word == "WORKDIR" else place
            if step.word == "COPY":
                origin = _root(target, step.flags["from"]) if "from" in step.flags else sources
                _copied(origin, step.arguments, _root(target, stage.name or str(number)), place)
    return _root(target, stage.name or str(number)) / place.relative_to("/"), stage


def _root(target: Path, stage: str) -> Path:
    return target / f"stage-{stage}"


def _copied(origin: Path, arguments: list[str], root: Path, place: Path) -> None:
    *wanted, to = arguments
    target = root / (place / to).relative_to("/")
    for name in wanted:
        source = origin / PurePosixPath(name).relative_to("/" if name.startswith("/") else ".")
        if not source.exists():
            raise BuildError(f"COPY {name}: not found")
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            into = to.endswith(("/", ".")) or len(wanted) > 1 or target.is_dir()
            _copy(source, target / source.name if into else target)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _step(line: str) -> Step:
    word, _, rest = line.strip().partition(" ")
    flags, text = {}, rest.strip()
    while match := re.match(r"--([a-z-]+)=(\S+)\s+", text):
        flags[match[1]] = match[2]
        text = text[match.end():]
    return Step(word.upper(), flags, text)
