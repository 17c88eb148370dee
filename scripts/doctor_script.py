"""Check each service that the configuration names: reachable, credentials good, rights, version and capabilities."""

import json
from pathlib import Path

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core.records import CONFIG
from utils import process

PARSER = process.Arguments(description=__doc__, epilog="Exits 0 if all is good, else as the first failed line calls "
                           "for: 2 configuration, token or machine; 4 MLflow, DagsHub or the DVC remote; 6 the Hub. "
                           "Changes nothing but the ledger's write-once probe. Codes: docs/exit-codes.md")
PARSER.add_argument("--json", action="store_true", help="the same as one JSON object")
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {CONFIG}")


def main() -> int:
    """Say what works and what does not; returns the exit code."""
    flags = PARSER.parse_args()

    from scripts.commands import diagnose

    checks = diagnose.examine(flags.config or CONFIG)
    process.say(json.dumps(diagnose.facts(checks), indent=2) if flags.json else diagnose.text(checks))
    return diagnose.exit_code(checks)


if __name__ == "__main__":
    process.run(main)
