"""Check that space/ can be deployed. Exit 0, or 1 with one line for each problem.

With --build it is a step of the image's build, after pip: it compares the installed packages with requirements.txt. It
names each package that has another version than the lock, is missing, is not in the lock or does not import, a torch
with CUDA, and a NumPy of the other ABI.
"""

import argparse
import logging
import sys
from pathlib import Path

from dependencies import checks
from dependencies.environment import one_line, problems
from dependencies.strategies import APPLIED, applied

logger = logging.getLogger("space")


def main() -> int:
    """Run every check, whatever the others find."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="store_true", help="only compare the installed packages with the lock")
    parser.add_argument("--folder", action="store_true", help="everything except the packages that are installed here")
    parser.add_argument("--requirements", type=Path, default=APPLIED, help="with --build: another requirements.txt")
    parser.add_argument("--verbose", action="store_true", help="also what passed, and every line of an error")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    wrong = 0
    chosen = {"build": lambda: problems(applied(arguments.requirements))} if arguments.build else checks.CHECKS
    if arguments.folder:
        chosen = {name: check for name, check in checks.CHECKS.items() if name not in checks.OF_PACKAGES}
    for name, found in checks.run(chosen):
        wrong += len(found)
        for problem in found:
            logger.error("%s: %s", name, problem if arguments.verbose else one_line(problem))
        if arguments.verbose and not found:
            logger.info("%s: ok", name)
    right = "ready to be deployed" if not arguments.build else "the installed packages are the locked ones"
    logger.info("%s", f"{wrong} problem{'s' if wrong > 1 else ''} found" if wrong else right)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
