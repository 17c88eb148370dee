"""docs/reliability.md is written by the tests that it reports, `pytest -m "reliability or slow"`, if RELIABILITY_PAGE
names it.

A block stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`; what is around it is written by hand. A table
that was printed elsewhere is put in by `python -m tests.reliability.reliability_page NAME FILE`.
"""

import fcntl
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_block(name: str, markdown: str, page: Path = PAGE) -> None:
    """Replace one block of the page; raises ValueError where the page has no such block."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    with page.open("r+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # several tests may end at once
        before, found, rest = file.read().partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{page}: has no block {name}")
        file.seek(0)
        file.write(f"{before}{begin}\n{markdown.strip()}\n{end}{after}")
        file.truncate()


def report(name: str, markdown: str) -> None:
    """Print a block, and write it into the page that RELIABILITY_PAGE names."""
    print(f"\n{name}\n{markdown}")
    if page := os.environ.get("RELIABILITY_PAGE", ""):
        write_block(name, markdown, Path(page))


if __name__ == "__main__":
    write_block(sys.argv[1], Path(sys.argv[2]).read_text())
