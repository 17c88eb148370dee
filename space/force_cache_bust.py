"""Change the build key in the Dockerfile, so that the next build of the image uses no cached layer.

    python space/force_cache_bust.py [--commit] [--push --space OWNER/NAME]
"""

import argparse
import logging
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import packages  # noqa: F401 - a missing package is one line
from files import write_text

HERE = Path(__file__).parent
_KEY = re.compile(r"^ARG BUILD_KEY=.*$", re.MULTILINE)

logger = logging.getLogger("space")


def main() -> int:
    """Print the new key. Exit 0, or 2 if there is no key to change or git refuses, or 6 if the Hub refuses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", action="store_true", help="commit the Dockerfile, and nothing else, with git")
    parser.add_argument("--push", action="store_true", help="change it on the Space too, which builds it again")
    parser.add_argument("--space", metavar="OWNER/NAME")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request
    if arguments.push and not arguments.space:
        parser.error("--push needs --space OWNER/NAME")
    key = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    try:
        if arguments.space:
            _check_name(arguments.space)
        dockerfile = HERE / "Dockerfile"
        write_text(dockerfile, changed(dockerfile.read_text(encoding="utf-8"), key))
        if arguments.commit:
            _commit(f"Build the Space's image without cache: {key}")
        if arguments.push:
            _push(arguments.space, key)
        else:
            logger.info("%s: changed here only; --push --space OWNER/NAME changes it on the Space", dockerfile)
    except BuildKeyError as error:
        logger.critical("%s", error)
        return error.code
    sys.stdout.write(f"{key}\n")
    return 0


class BuildKeyError(Exception):
    """The build key could not be changed; the text says why."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def changed(text: str, key: str) -> str:
    """A Dockerfile with another key; raises BuildKeyError if it has none."""
    if not _KEY.search(text):
        raise BuildKeyError("Dockerfile: has no line ARG BUILD_KEY=; put one before the first FROM")
    return _KEY.sub(f"ARG BUILD_KEY={key}", text, count=1)


def _commit(title: str) -> None:
    done = subprocess.run(["git", "-C", str(HERE), "commit", "--quiet", "-m", title, "--", "Dockerfile"],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildKeyError(f"git commit: {(done.stderr or done.stdout).strip()}")


def _check_name(name: str) -> None:
    from deploying.hub import BadUsage, check_name

    try:
        check_name("--space", name)
    except BadUsage as error:
        raise BuildKeyError(str(error)) from error


def _push(name: str, key: str) -> None:
    from deploying.hub import DeployError, connect
    from deploying.space import BUILD_KEY, Space

    def renewed(text: str) -> str:
        if not _KEY.search(text):
            raise BuildKeyError(f"{name}: the Dockerfile there has no line ARG BUILD_KEY=, for example because the "
                                "Space serves the fallback; `deploy.py --strategy modern` deploys the model again")
        return changed(text, key)

    try:
        space = Space(connect(), name, logger.info)
        oid = space.amend("Dockerfile", renewed, BUILD_KEY + key)
    except DeployError as error:
        raise BuildKeyError(str(error), error.code) from error
    logger.info("%s: builds every layer again, at %s", name, oid[:12])


if __name__ == "__main__":
    sys.exit(main())
