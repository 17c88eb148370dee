"""Choose what the Space installs: list the strategies, find one for an error, test it, apply it, undo that."""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import packages  # noqa: F401 - a missing package is one line
from dependencies import checks, strategies
from dependencies.environment import ScratchError, build
from dependencies.strategies import Diagnosis, diagnose

logger = logging.getLogger("space")


def main() -> int:
    """Exit 0 when done, 1 when a strategy cannot be installed, 2 for a wrong flag or file."""
    known = strategies.load()
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="the strategies and what works with each")
    what.add_argument("--recommend", action="store_true", help="find the strategy for an error in --log, or here")
    what.add_argument("--strategy", choices=known, metavar="NAME", help=f"one of {', '.join(known)}")
    what.add_argument("--undo", action="store_true", help="put back the requirements.txt from before the last --apply")
    parser.add_argument("--log", metavar="FILE", help="the log of a build or a start; - for stdin")
    parser.add_argument("--test", action="store_true", help="install it in a temporary environment and import it")
    parser.add_argument("--apply", action="store_true", help="write requirements.txt, which the Dockerfile installs")
    arguments = parser.parse_args()
    if bool(arguments.strategy) != (arguments.test or arguments.apply) or (arguments.log and not arguments.recommend):
        parser.error("--strategy takes --test, --apply or both, and --log goes with --recommend")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        if arguments.strategy:
            return _take(known[arguments.strategy], test=arguments.test, apply=arguments.apply)
        if arguments.undo:
            strategies.undo()
            logger.info("%s: put back as it was before the last --apply", strategies.APPLIED)
        elif arguments.list:
            _list(known)
        else:
            _recommend(arguments.log)
    except (strategies.StrategyError, OSError) as error:
        logger.critical("%s", error)
        return 2
    return 0


def _list(known: dict[str, strategies.Strategy]) -> None:
    for strategy in known.values():
        logger.info("%s: %s\n  works: %s. Python %s, %d packages, %d MB", strategy.name, strategy.summary,
                    ", ".join(strategy.works), " and ".join(strategy.python), len(strategy.complete),
                    strategy.megabytes)


def _recommend(log: str | None) -> None:
    if log:
        text = sys.stdin.read() if log == "-" else _read(log)
        found, otherwise = diagnose(text), "this log shows none of the known errors; docs/dependencies.md lists them"
    else:
        said = "\n".join([*checks.requirements(), *checks.imports()])
        found, otherwise = diagnose(said), said or "nothing is wrong in this environment"
    logger.info("%s\nstrategy: %s", _explained(found) if found else otherwise,
                found.error.strategy if found else "none")


def _read(log: str) -> str:
    try:
        return Path(log).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise strategies.StrategyError(f"--log {log}: cannot be read: {error.strerror}") from error


def _explained(found: Diagnosis) -> str:
    versions = [f"installed {found.installed}"] if found.installed else []
    versions += [f"wanted {found.wanted}"] if found.wanted else []
    change = f"{found.package} ({', '.join(versions)})" if versions else found.package
    return (f"{found.line}\nchange: {change}\nwhy: {found.error.why}\n"
            f"do: python space/deploy.py --auto --push --space OWNER/NAME --strategy {found.error.strategy}")


def _take(strategy: strategies.Strategy, *, test: bool, apply: bool) -> int:
    if test:
        try:
            with tempfile.TemporaryDirectory() as folder:
                megabytes, seconds = build(strategy, Path(folder) / "venv")
        except ScratchError as error:
            found = diagnose(str(error))
            logger.critical("%s\n%s\n%s: failed", error, _explained(found) if found else "", strategy.name)
            return 1
        logger.info("%s: ok, %d packages, %.0f MB, %.0f s", strategy.name, len(strategy.complete), megabytes, seconds)
    if apply:
        changed = strategies.apply(strategy)
        logger.info("%s: strategy %s%s", strategies.APPLIED, strategy.name, "" if changed else " already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
