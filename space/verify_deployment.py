"""Check space/ before it is deployed, in the environment that this runs in. Exit 0, or 1 with one line each."""

from __future__ import annotations

import argparse
import logging
import sys

from dependencies import checks
from dependencies.environment import one_line

logger = logging.getLogger("space")


def main() -> int:
    """Run every check, whatever the others find."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="also what is right")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    wrong = 0
    for name, problems in checks.run():
        wrong += len(problems)
        for problem in problems:
            logger.error("%s: %s", name, problem if arguments.verbose else one_line(problem))
        if arguments.verbose and not problems:
            logger.info("%s: ok", name)
    logger.info("%s", f"{wrong} wrong" if wrong else "ready to be deployed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
