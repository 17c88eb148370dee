"""Assert what is installed against requirements.txt: `RUN python assert_build.py` in the image, after pip.

Exit 0, or 1 with one line for each package that is wrong, missing, too many or does not import, for a torch with CUDA,
and for a NumPy of the other ABI.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from dependencies.environment import one_line, problems
from dependencies.strategies import APPLIED, StrategyError, applied

logger = logging.getLogger("space")


def main() -> int:
    """Look, and say what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requirements", type=Path, default=APPLIED)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        strategy = applied(arguments.requirements)
        found = list(problems(strategy))
    except StrategyError as error:
        found = [str(error)]
    for each in found:
        logger.error("wrong: %s", one_line(each))
    if not found:
        logger.info("%s: %d packages, as locked", strategy.name, len(strategy.complete))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
