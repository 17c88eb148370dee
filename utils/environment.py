"""What the environment says: switches of the deployment stage, the actor, the CI run, and the git commit."""

import fnmatch
import getpass
import json
import logging
import os
import re
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.core.errors import InvalidParams
from src.core.params import DeploymentParams
from utils.process import redacted

logger = logging.getLogger(__name__)

TOKEN_NAMES = ("HF_TOKEN", "HUGGINGFACE_HUB_TOKEN")
MAX_REASON = 500  # characters; a ledger slot has room for it in any script
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}
_MAX_NAME = 120
NO_COMMIT = "none"


@dataclass(frozen=True)
class Asked:
    """What this deployment was asked to do; reason is one clean line, empty if none was given."""

    force: bool
    reason: str
    push: bool


def asked(params: DeploymentParams, *, force: bool, reason: str | None, skip_hf_push: bool) -> Asked:
    """Flags, else DEPLOY_FORCE, DEPLOY_REASON and DEPLOY_SKIP_HF_PUSH; skipping wins over push_to_hub.

    Raises InvalidParams for an unclear value, a forced promotion without the reason that params ask for, and a push
    without a token.
    """
    forced = force or _flag("DEPLOY_FORCE")
    text = clean_reason(os.environ.get("DEPLOY_REASON") if reason is None else reason)
    if forced and params.force_requires_reason and not text:
        raise InvalidParams("--force-deploy: deployment.force_requires_reason asks for a reason; add --reason TEXT")
    return Asked(forced, text, will_push(params, skip_hf_push=skip_hf_push))


def will_push(params: DeploymentParams, *, skip_hf_push: bool) -> bool:
    """Whether a promotion goes to the Hub; raises InvalidParams when it would and there is no token."""
    push = params.huggingface.push_to_hub and not (skip_hf_push or _flag("DEPLOY_SKIP_HF_PUSH"))
    if push and token() is None:
        raise InvalidParams("deployment.huggingface.push_to_hub: true needs HF_TOKEN (a write token of "
                            f"{params.huggingface.model_id}); set it, or pass --skip-hf-push")
    return push


def token() -> str | None:
    """The Hub token: HF_TOKEN, else HUGGINGFACE_HUB_TOKEN, trimmed, else one for the workflow's own identity if
    HF_OIDC_RESOURCE asks for it (utils.hub.identity); None without any of them.

    Raises InvalidParams for one with a space, a line break or a character outside ASCII in it: no header takes it.
    """
    for name in TOKEN_NAMES:
        value = os.environ.get(name, "")
        if value.strip():
            if value != value.strip():
                logger.warning("%s: has spaces or a newline around it, which are ignored", name)
            if not re.fullmatch(r"[!-~]+", value.strip()):
                raise InvalidParams(f"{name}: holds a space, a line break or a letter that no token has; copy it again")
            return value.strip()
    if os.environ.get("HF_OIDC_RESOURCE", "").strip():
        from utils.hub import identity  # the Hub's client, which most commands do without

        return identity.exchange()
    return None


def clean_reason(text: str | None) -> str:
    """A reason as one line of at most 500 characters, without control characters."""
    return _one_line(redacted(text or ""), MAX_REASON)


def actor() -> str:
    """Who runs this: GITHUB_ACTOR, else user@host."""
    if name := _one_line(os.environ.get("GITHUB_ACTOR", ""), _MAX_NAME):
        return name
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's uid without a name
        user = str(os.getuid())
    return _one_line(f"{user}@{socket.gethostname()}", _MAX_NAME)


def in_ci() -> bool:
    """Whether this is a CI machine, whose disk is thrown away."""
    return any(os.environ.get(name, "").strip().lower() not in _FALSE for name in ("CI", "GITHUB_ACTIONS"))


def ci_url() -> str | None:
    """The address of the GitHub Actions run, None elsewhere."""
    parts = [os.environ.get(name) for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")]
    return _one_line("{}/{}/actions/runs/{}".format(*parts), MAX_REASON) if all(parts) else None


@dataclass(frozen=True)
class GitIdentity:
    """The commit (`none` if there is none), whether sources differ from it, and the branch (None if detached)."""

    commit: str
    dirty: bool
    branch: str | None


def git_identity(folder: Path = Path()) -> GitIdentity:
    """The state of the repository that a folder is in; in a DVC experiment, the commit that it was started from."""
    # `dvc exp run` commits its changed parameters while it runs: a commit that nobody finds afterwards.
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _read_git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    # What the pipeline itself writes does not make a tree dirty.
    changes = _read_git(folder, "status", "--porcelain", "--", ".", ":(exclude)results", ":(exclude)dvc.lock")
    branch = _read_git(folder, "branch", "--show-current")
    return GitIdentity(commit=commit or NO_COMMIT, dirty=bool(changes), branch=branch or None)


def _read_git(folder: Path, *arguments: str) -> str:
    """What git prints; empty if it fails or is not installed, as outside of a repository."""
    try:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def may_promote(branches: Sequence[str], local: str | None) -> bool:
    """Whether the branch at hand (GitHub's word for it, else the local one) matches a pattern; no pattern: any may."""
    branch = os.environ.get("GITHUB_HEAD_REF") or os.environ.get("GITHUB_REF_NAME") or local or ""
    return not branches or any(fnmatch.fnmatchcase(branch, pattern) for pattern in branches)


def _one_line(text: str, limit: int) -> str:
    """Text from outside as one line for a ledger slot: at most `limit` characters, and 6 times as many in JSON."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:limit]
    while len(json.dumps(line)[1:-1]) > 6 * limit:
        line = line[:-1]
    return line


def _flag(name: str) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if value not in _TRUE | _FALSE:
        raise InvalidParams(f"{name}: {value!r} is neither true nor false; use true or false")
    return value in _TRUE
