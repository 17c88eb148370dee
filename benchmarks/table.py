"""The table of benchmarks/README.md: read, its rows of one benchmark replaced, and written. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

BEGIN, END = "<!-- table: python -m benchmarks -->", "<!-- end of table -->"
HEAD = ("benchmark", "measure", "median", "lowest to highest", "peak MB", "machine", "date", "commit")


@dataclass(frozen=True)
class Stamp:
    """Where and when figures were measured."""

    machine: str
    date: str
    commit: str


def rewritten(page: str, name: str, rows: Sequence[Mapping[str, Any]], stamp: Stamp) -> str:
    """The page with a benchmark's rows replaced; all other rows keep their figures.

    rows are those of its JSON. Raises ValueError where the page has no table between its two marks, or other columns.
    """
    parts = re.split(f"({re.escape(BEGIN)}|{re.escape(END)})", page)
    if len(parts) != 5 or (parts[1], parts[3]) != (BEGIN, END):
        raise ValueError(f"README.md: one table between {BEGIN} and {END} is expected")
    kept = read(parts[2])
    made = [(name, str(row["measure"]), _figure(row["value"]), " to ".join(map(_figure, row["spread"])),
             "" if row["peak_mb"] is None else f"{row['peak_mb']:,.0f}", *astuple(stamp)) for row in rows]
    at = next((place for place, row in enumerate(kept) if row[0] == name), len(kept))
    others = [row for row in kept if row[0] != name]
    parts[2] = "\n" + "".join(map(_line, [HEAD, ("---",) * len(HEAD), *others[:at], *made, *others[at:]]))
    return "".join(parts)


def read(text: str) -> list[tuple[str, ...]]:
    """The rows of a table, cells stripped; raises ValueError for other columns than HEAD."""
    lines = [tuple(cell.strip() for cell in line.strip("| ").split(" | ")) for line in text.strip().splitlines()]
    if lines and (lines[0] != HEAD or {len(line) for line in lines[2:]} - {len(HEAD)}):
        raise ValueError(f"README.md: the table's columns are not {', '.join(HEAD)}")
    return lines[2:]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _figure(value: float) -> str:
    """Three significant digits, large numbers whole."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
