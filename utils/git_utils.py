"""What git says about the working tree; a folder outside git, or without commits, has an identity too."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

UNKNOWN = "none"
# What the pipeline itself writes does not make a tree dirty.
_SOURCES = (".", ":(exclude)results", ":(exclude)dvc.lock")


@dataclass(frozen=True)
class GitIdentity:
    """The commit (`none` where there is none), whether sources differ from it, and the branch (None if detached)."""

    commit: str
    dirty: bool
    branch: str | None


def identity(folder: Path = Path()) -> GitIdentity:
    """The state of the repository that a folder is in; in a DVC experiment, the commit that it was started from."""
    # `dvc exp run` commits its changed parameters while it runs: a commit that nobody finds afterwards.
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--", *_SOURCES)
    branch = _git(folder, "branch", "--show-current")
    return GitIdentity(commit=commit or UNKNOWN, dirty=bool(changes), branch=branch or None)


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; empty where it fails or is not installed, which is how being outside git looks."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
