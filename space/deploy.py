"""Push the bundle to a Space and check that it answers: `python space/deploy.py --auto --push --space acme/chat`.

Exit codes: 0 done, 2 a flag or setting is wrong, 3 the folder cannot be deployed as it is, 5 the bundle or the version
that answers is not the validated one, 6 the Hub failed or the Space did not come up (the result says what serves now),
7 the Space holds somebody else's files, 75 run it again, 130 stopped.
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
PARSER.add_argument("--bundle", type=Path, default=HERE / "assets", help="a validated bundle; default: space/assets")
PARSER.add_argument("--push", action="store_true", help="without it, only say what would be pushed")
PARSER.add_argument("--auto", action="store_true", help="do not ask before each step")
PARSER.add_argument("--verify-only", action="store_true", help="check the live Space, change nothing")
PARSER.add_argument("--on-failure", choices=("rollback", "fallback"), default="rollback",
                    help="what to do if it does not answer: put back the last commit that did (default), or "
                         "serve stored answers")
PARSER.add_argument("--strategy", metavar="NAME",
                    help="install other requirements (fix_dependencies.py --list); minimal: stored answers, no model")
PARSER.add_argument("--champion", metavar="NAME",
                    help="refuse a bundle of another model than this model repository has on main")
PARSER.add_argument("--delete-others", action="store_true",
                    help="delete files of the Space that somebody else pushed; without it they stop the deployment")
PARSER.add_argument("--private", action="store_true", help="if the Space is created, make it private")
PARSER.add_argument("--url", help="address of the live Space, if it is not the one that the Hub gives")
PARSER.add_argument("--record", type=Path, help="write the result to this file as JSON")
PARSER.add_argument("--wait", type=float, default=1800, metavar="SECONDS",
                    help="how long the build and the start may take (1800)")
PARSER.add_argument("--settle", type=float, default=60, metavar="SECONDS",
                    help="how long a running Space may take to answer correctly (60)")
logger = logging.getLogger("space")


def main() -> int:
    """Deploy, or check; logs go to stderr, the result to stdout."""
    arguments = PARSER.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    try:
        record = _done(arguments)
    except (DeployError, BundleError) as error:
        record = DeploymentResult("failed", error.code, clean(str(error)), arguments.space)
        logger.critical("%s", record.reason)
    except KeyboardInterrupt:
        record = DeploymentResult("failed", 130, "stopped; run it again", arguments.space)
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
        raise BadUsage("deploy.py asks before each step, and this is no terminal; add --auto")
    return _ask


def _ask(doing: str) -> None:
    sys.stderr.write(f"{doing}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
