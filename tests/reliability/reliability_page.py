"""Write the tables of docs/appendix-reliability.md, if the environment variable RELIABILITY_PAGE names that page.

The tests that a table reports write it: `pytest -m "reliability or slow"`. A table stands between
`<!-- begin: NAME -->` and `<!-- end: NAME -->`. The text around it is written by hand.
"""

import fcntl
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def report(name: str, markdown: str) -> None:
    """Print a table, and write it into the page that RELIABILITY_PAGE names."""
    print(f"\n{name}\n{markdown}")
    if page := os.environ.get("RELIABILITY_PAGE", ""):
        with Path(page).open("r+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # several tests may end at once
            before, begin, after = re.split(f"(<!-- begin: {name} -->\n)[^\0]*?(?=<!-- end: {name} -->)", file.read())
            file.seek(0)
            file.write(f"{before}{begin}{markdown.strip()}\n{after}")
            file.truncate()
