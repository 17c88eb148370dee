"""From what a build or a start said to the requirement to change, and to the strategy that does."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from dependencies.strategies import canonical

_TABLE = Path(__file__).parent / "errors.toml"


@dataclass(frozen=True)
class Error:
    """A kind of error; `pattern` may have the groups package, installed and wanted."""

    branch: str
    says: str
    pattern: str
    strategy: str
    why: str
    package: str | None
    wanted: str | None


@dataclass(frozen=True)
class Diagnosis:
    """What an error is traced to; None for what the text does not tell."""

    error: Error
    line: str
    package: str
    installed: str | None
    wanted: str | None


def errors() -> list[Error]:
    """The table, in the order that decides."""
    with _TABLE.open("rb") as file:
        branches = tomllib.load(file)
    return [Error(branch, row["says"], row["pattern"], row["strategy"], row["why"], row.get("package"),
                  row.get("wanted")) for branch, rows in branches.items() for row in rows]


def diagnose(text: str) -> Diagnosis | None:
    """The first kind of error of the table that a text shows; None where it shows none."""
    for error in errors():
        if found := re.search(error.pattern, text):
            told = {"package": error.package, "installed": None, "wanted": error.wanted} | {
                name: value for name, value in found.groupdict().items() if value}
            line = text[:found.end()].rpartition("\n")[2] + text[found.end():].partition("\n")[0]
            return Diagnosis(error, line.strip(), canonical(told["package"] or "?"), told["installed"], told["wanted"])
    return None
