"""Run benchmarks and put their figures into the table of benchmarks/README.md.

    python -m benchmarks [NAME ...]

Without a name all of them run, one after the other, which takes most of an hour; a name's rows alone are written anew,
and the others keep their figures and their dates. One that fails leaves the table as it was.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import measure, table

NAMES = ("merge", "repro_overhead", "full_size", "fine_tuning", "evaluation", "serving", "scoring", "history",
         "pocket")
README = Path(__file__).with_name("README.md")

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("names", nargs="*", metavar="NAME", choices=[[], *NAMES], help=f"of {', '.join(NAMES)}")


def main() -> None:
    """Run each and write the table after it, so that a long run that is cut short has not been in vain."""
    for name in PARSER.parse_args().names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "figures.json"
            subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--json", str(file)], check=True,
                           cwd=measure.ROOT)
            found = json.loads(file.read_text())
        README.write_text(table.rewritten(README.read_text(), name, found["rows"], stamp()))


def stamp() -> table.Stamp:
    """Today, this machine and this commit."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], check=True, cwd=measure.ROOT,
                            capture_output=True, text=True).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return table.Stamp(date=f"{datetime.now(UTC):%Y-%m-%d}", machine=f"{os.cpu_count()} cores, {memory:.0f} GB",
                       commit=commit)


if __name__ == "__main__":
    main()
