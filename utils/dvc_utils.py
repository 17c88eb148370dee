"""DVC as a command of its own: its cache and remote, and the one run of the pipeline."""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.errors import RunAgain
from utils.dvc_remote import default_remote

logger = logging.getLogger(__name__)

_NOBODY = ("Champion", "champion@localhost")


def pull() -> None:
    """Fetch data, models and the run cache; what nobody pushed yet is left to the pipeline to make."""
    _with_remote("pull", "--run-cache", "--allow-missing")


def push() -> None:
    """Send data, models and the run cache to the remote, for the next clone."""
    _with_remote("push", "--run-cache")


def reproduce(settings: Sequence[str]) -> int:
    """Run the pipeline once, with parameters for this run only where there are any; returns DVC's exit code."""
    changes = [word for setting in settings for word in ("--set-param", setting)]
    return _dvc("exp", "run", *changes) if settings else _dvc("repro")


def _with_remote(*command: str) -> None:
    remote = default_remote()
    if remote is None:
        logger.warning("dvc %s: no default remote, so nothing is shared between runs; see docs/remotes.md", command[0])
        return
    logger.info("dvc %s: remote %s", command[0], remote.name)
    if _dvc(*command) != 0:
        raise RunAgain(f"dvc {command[0]}: remote {remote.name} failed, as the lines above say; check it with "
                       "`python scripts/doctor_script.py` and run it again")


def _dvc(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], env=_environment(), check=False).returncode


def _environment() -> Mapping[str, str]:
    """The stages' `python` is this one, and an experiment has an author where git knows none."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    author = {} if _git_knows_an_author() else {
        f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
        for what, value in zip(("NAME", "EMAIL"), _NOBODY, strict=True)}
    return {**author, **os.environ, "PATH": path}


def _git_knows_an_author() -> bool:
    try:
        return subprocess.run(["git", "config", "user.email"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
