"""Start a stage as `launcher` in params.yaml says: `python`, or `accelerate launch` with its flags.

Flags before the stage are those of `accelerate launch`; then `launcher` is not read.
"""

import argparse
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core.errors import InvalidParams
from src.core.params import load_params
from src.core.records import CONFIG
from utils import process

PARSER = process.Arguments(description=__doc__)
PARSER.add_argument("stage", nargs="+", metavar="STAGE", help="a script, for example scripts/fine_tuning_script.py, "
                    "and its arguments")


def main() -> int:
    """Start the stage, and return its exit code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        PARSER.parse_args(arguments)
    flags, stage = arguments, []
    if not arguments[0].startswith("-"):
        if not Path(arguments[0]).is_file():
            raise InvalidParams(f"{arguments[0]}: no such script; name a stage's, as dvc.yaml does")
        launcher = _launcher(arguments)
        if launcher == ["python"]:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
            return 0
        flags, stage = launcher[2:], arguments

    from src.models import placement

    return placement.launch(flags, stage)


def _launcher(stage: Sequence[str]) -> list[str]:
    """The words of `launcher`, in the file that the stage reads too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, nargs="?")
    config = parser.parse_known_args(stage)[0].config or CONFIG
    text = load_params(config).launcher
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if words == ["python"] or words[:2] == ["accelerate", "launch"]:
        return words
    raise InvalidParams(f"{config}: launcher: {text!r} is unknown; write python, or accelerate launch and its flags, "
                        "for example accelerate launch --num_processes 2")


if __name__ == "__main__":
    process.run(main)
