"""Deploy the bundle as a Space and see it answer: `python space/deploy.py --auto --push --space acme/chat`.

Exit codes: 0 done, 2 flag or setting, 3 folder unfit, 5 bundle or answering version unsound, 6 the Hub failed or the
Space did not come up (the result says what serves now), 7 somebody else's files are on the Space, 75 run it again,
130 stopped.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # read at import; a Xet upload can hang for good, plain LFS cannot
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its warnings show signed addresses
if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import packages  # noqa: F401 - a missing package is one line
from deploying.hub import BadUsage, DeployError, check_name, clean
from deploying.steps import DeploymentResult, Plan, SpaceDeployment, verify
from serving.identity import BundleError

HERE = Path(__file__).parent
PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--space", metavar="OWNER/NAME")
PARSER.add_argument("--bundle", type=Path, default=HERE / "assets", help="a validated one; it becomes assets/")
PARSER.add_argument("--push", action="store_true", help="without it nothing outside changes")
PARSER.add_argument("--auto", action="store_true", help="do not ask before each effect")
PARSER.add_argument("--verify-only", action="store_true", help="check the live Space, change nothing")
PARSER.add_argument("--on-failure", choices=("rollback", "fallback"), default="rollback",
                    help="back to the last commit that was seen answering, or the fallback")
PARSER.add_argument("--strategy", metavar="NAME", help="requirements to take over; fix_dependencies.py --list")
PARSER.add_argument("--champion", metavar="NAME", help="model repository whose main the bundle has to be of")
PARSER.add_argument("--delete-others", action="store_true",
                    help="delete files of the Space that somebody else pushed; without it they stop the deployment")
PARSER.add_argument("--private", action="store_true", help="of a Space that is created")
PARSER.add_argument("--url", help="address of the live Space, if it is not the one that the Hub states")
PARSER.add_argument("--record", type=Path, help="write the result there as JSON")
PARSER.add_argument("--wait", type=float, default=1800, metavar="SECONDS", help="for the build and the start")
PARSER.add_argument("--settle", type=float, default=60, metavar="SECONDS", help="for a running Space to be right")
logger = logging.getLogger("space")


def main() -> int:
    """Exit with the code of how it ended; logs on stderr, the result on stdout."""
    arguments = PARSER.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    try:
        record = _done(arguments)
    except (DeployError, BundleError) as error:
        record = DeploymentResult("failed", error.code, clean(str(error)), arguments.space)
        logger.critical("%s", record.reason)
    except KeyboardInterrupt:
        record = DeploymentResult("failed", 130, "interrupted; run it again", arguments.space)
        logger.critical("%s", record.reason)
    if arguments.record:
        record.write(arguments.record)
    sys.stdout.write(f"{record.line}\n")
    return record.code


def _done(arguments: argparse.Namespace) -> DeploymentResult:
    if arguments.push and not arguments.space:
        raise BadUsage("--push needs --space OWNER/NAME")
    check_name("--space", arguments.space)
    check_name("--champion", arguments.champion)
    plan = Plan(HERE, arguments.bundle, arguments.space, arguments.strategy, arguments.push, arguments.private,
                arguments.delete_others, arguments.on_failure, arguments.url, arguments.champion, arguments.wait,
                arguments.settle)
    return verify(plan) if arguments.verify_only else SpaceDeployment(plan, _asking(arguments)).run()


def _asking(arguments: argparse.Namespace) -> Callable[[str], None]:
    if arguments.auto:
        return lambda doing: logger.info("%s", doing)
    if (arguments.push or arguments.strategy) and not sys.stdin.isatty():
        raise BadUsage("this is no terminal to ask on before each step; --auto does without asking")
    return _ask


def _ask(doing: str) -> None:
    sys.stderr.write(f"{doing}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
