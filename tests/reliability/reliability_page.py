"""docs/reliability.md is written by the tests that it reports, `pytest -m "reliability or slow"`, if RELIABILITY_PAGE
names it. A block stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`; what is around it is written by hand.
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
    """Print a block, and write it into the page that RELIABILITY_PAGE names."""
    print(f"\n{name}\n{markdown}")
    if page := os.environ.get("RELIABILITY_PAGE", ""):
        with Path(page).open("r+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # several tests may end at once
            before, begin, after = re.split(f"(<!-- begin: {name} -->\n)[^\0]*?(?=<!-- end: {name} -->)", file.read())
            file.seek(0)
            file.write(f"{before}{begin}{markdown.strip()}\n{after}")
            file.truncate()
