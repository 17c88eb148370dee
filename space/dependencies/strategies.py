"""The strategies, which are sets of requirements: their table, the applied one, and the one that an error calls for."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from files import write_text

SPACE = Path(__file__).parents[1]
REQUIREMENTS = SPACE / "requirements"
APPLIED = SPACE / "requirements.txt"  # what the Dockerfile installs
_BEFORE = SPACE / ".requirements.txt.before"
_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", re.MULTILINE)
_OTHER = re.compile(r"^-r (\S+)", re.MULTILINE)
_NAME = re.compile(r"^# strategy: (\S+)$", re.MULTILINE)


class StrategyError(Exception):
    """There is no such strategy or file; the text says what to do."""


@dataclass(frozen=True)
class Strategy:
    """A set of requirements that serves something."""

    name: str
    summary: str
    program: str  # what becomes app.py
    locks: list[str]  # files in requirements/ that are installed together
    works: list[str]  # features, which the table explains
    python: list[str]  # where it was tried
    megabytes: int  # of the environment, measured

    @property
    def text(self) -> str:
        """The requirements.txt that takes this strategy; its paths are relative to space/."""
        return "\n".join([f"# strategy: {self.name}", "--require-hashes",
                          *(f"-r {REQUIREMENTS.name}/{lock}" for lock in self.locks), ""])

    @property
    def direct(self) -> dict[str, str]:
        """The versions that are asked for, by name."""
        return pins(REQUIREMENTS / f"{self.name}.txt")

    @property
    def complete(self) -> dict[str, str]:
        """The versions of all that is installed, by name."""
        return {name: version for lock in self.locks for name, version in pins(REQUIREMENTS / lock).items()}


def load() -> dict[str, Strategy]:
    """The strategies by name, in the order in which to try them."""
    rows = _table("strategies.toml")["strategies"]
    return {name: Strategy(name, **row) for name, row in rows.items()}


def _table(name: str) -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


def pins(path: Path) -> dict[str, str]:
    """Version by name of a file of requirements and of those that it names with -r; raises StrategyError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StrategyError(f"{path}: cannot be read: {error.strerror}; take it from git again") from error
    found = {name: version for other in _OTHER.findall(text) for name, version in pins(path.parent / other).items()}
    return found | {canonical(name): version for name, version in _PIN.findall(text)}


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def applied(path: Path = APPLIED) -> Strategy:
    """The strategy whose name stands in requirements.txt; raises StrategyError."""
    found, known = _NAME.search(path.read_text(encoding="utf-8") if path.is_file() else ""), load()
    if not found or found[1] not in known:
        raise StrategyError(f"{path}: names no strategy; run fix_dependencies.py --strategy modern --apply")
    return known[found[1]]


def apply(strategy: Strategy) -> bool:
    """Write requirements.txt and keep the one before; returns whether that changed anything."""
    before = APPLIED.read_text(encoding="utf-8") if APPLIED.is_file() else None
    if before == strategy.text:
        return False
    if before is not None:
        write_text(_BEFORE, before)
    write_text(APPLIED, strategy.text)
    return True


def undo() -> None:
    """Put the requirements.txt before the last apply back; raises StrategyError if there was none."""
    try:
        _BEFORE.replace(APPLIED)
    except FileNotFoundError as error:
        raise StrategyError(f"{APPLIED}: nothing to undo, no strategy was applied here before") from error


@dataclass(frozen=True)
class KnownError:
    """A kind of error; `pattern` may have the groups package, installed and wanted."""

    branch: str
    says: str
    pattern: str
    strategy: str
    why: str
    package: str | None = None
    wanted: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What an error is traced to; None for what the text does not tell."""

    error: KnownError
    line: str
    package: str
    installed: str | None
    wanted: str | None


def errors() -> list[KnownError]:
    """The table, in the order that decides."""
    return [KnownError(branch, **row) for branch, rows in _table("errors.toml").items() for row in rows]


def diagnose(text: str) -> Diagnosis | None:
    """The first error of the table that a text contains; None if it contains none."""
    for error in errors():
        if found := re.search(error.pattern, text):
            told = {"package": error.package, "installed": None, "wanted": error.wanted} | {
                name: value for name, value in found.groupdict().items() if value}
            line = text[:found.end()].rpartition("\n")[2] + text[found.end():].partition("\n")[0]
            return Diagnosis(error, line.strip(), canonical(told["package"] or "?"), told["installed"], told["wanted"])
    return None
