"""Start a stage in several processes; the flags are those of `accelerate launch`.

    launcher: python scripts/launch_script.py --num_processes 2
"""

import sys

from utils import process


def main() -> int:
    """Launch, and return the stage's exit code."""
    from src.models import placement

    return placement.launch(sys.argv[1:])


if __name__ == "__main__":
    process.run(main)
