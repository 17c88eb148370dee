"""Commit dvc.lock and the records to the branch at origin."""

import base64
import logging
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from src.core.errors import RunAgain

logger = logging.getLogger(__name__)
PATHS = ("dvc.lock", "results")
BOT = ("github-actions[bot]", "41898282+github-actions[bot]@users.noreply.github.com")
_ATTEMPTS = 5


def commit_records(branch: str, message: str) -> str | None:
    """Put dvc.lock and what is not ignored below results/ on the branch at origin; returns the commit.

    None if the branch holds them already, or is gone. Commits of other runs' records in between give way to
    these; raises RunAgain if somebody else changed the records or rewrote the branch, or after five lost races.
    """
    start = _git("rev-parse", "HEAD")
    for _ in range(_ATTEMPTS):
        if not _git("ls-remote", "--heads", "origin", f"refs/heads/{branch}"):
            logger.warning("%s: the branch is gone from origin, and its records with it", branch)
            return None
        _git("fetch", "--quiet", "--no-tags", "origin", f"+refs/heads/{branch}:refs/champion/tip")
        tip = _git("rev-parse", "refs/champion/tip")
        _refuse_foreign(start, tip, branch)
        made = _commit_on(tip, message)
        if made is None or _pushed(made, branch):
            return made
        logger.info("%s moved on while the records were on their way; once more", branch)
    raise RunAgain(f"{branch}: moved on {_ATTEMPTS} times while the records were on their way; run the job again")


def _refuse_foreign(start: str, tip: str, branch: str) -> None:
    if _run("merge-base", "--is-ancestor", start, tip).returncode:
        raise RunAgain(f"{branch}: was rewritten while the pipeline ran, so the records of {start[:12]} have no place "
                       "on it; the run of what is there now leaves its own")
    authors = _git("log", "--format=%ae", f"{start}..{tip}", "--", *PATHS).split()
    if set(authors) - {BOT[1]}:
        raise RunAgain(f"{branch}: somebody changed {' or '.join(PATHS)} while the pipeline ran on {start[:12]}; the "
                       "run of that push leaves its own records")


def _commit_on(tip: str, message: str) -> str | None:
    """A commit on the tip with our records in it, made beside the working tree's own index."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        _git("read-tree", tip, more=index)
        _git("add", "--all", "--", *[path for path in PATHS if Path(path).exists()], more=index)
        tree = _git("write-tree", more=index)
    if tree == _git("rev-parse", f"{tip}^{{tree}}"):
        return None
    return _git("commit-tree", tree, "-p", tip, "-F", "-", more=authored(*BOT), text=message)


def authored(name: str, email: str) -> dict[str, str]:
    """The variables that make somebody git's author and committer."""
    return {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", name), ("EMAIL", email))}


def _pushed(commit: str, branch: str) -> bool:
    """Whether origin took it; False if the branch moved on first, and RunAgain for any other refusal."""
    done = _run("push", "--porcelain", "origin", f"{commit}:refs/heads/{branch}")
    raced = "[rejected]" in done.stdout or "cannot lock ref" in done.stdout + done.stderr
    if done.returncode and not raced:
        raise _error("push", done)
    return done.returncode == 0


def _git(*arguments: str, more: Mapping[str, str] | None = None, text: str = "") -> str:
    done = _run(*arguments, more=more, text=text)
    if done.returncode:
        raise _error(arguments[0], done)
    return done.stdout.strip()


def _run(*arguments: str, more: Mapping[str, str] | None = None, text: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", *arguments], env={**os.environ, **_credentials(), **(more or {})}, input=text,
                          capture_output=True, text=True, check=False)


def _credentials() -> Mapping[str, str]:
    """GITHUB_TOKEN for GITHUB_SERVER_URL, passed to git so that no other process and no file shows it."""
    token, server = (os.environ.get(name, "").strip() for name in ("GITHUB_TOKEN", "GITHUB_SERVER_URL"))
    if not token or not server:
        return {}
    login = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"http.{server.rstrip('/')}/.extraheader",
            "GIT_CONFIG_VALUE_0": f"AUTHORIZATION: basic {login}", "GIT_TERMINAL_PROMPT": "0"}


def _error(what: str, done: "subprocess.CompletedProcess[str]") -> RunAgain:
    said = " ".join((done.stderr or done.stdout).split())
    return RunAgain(f"git {what}: {said}; where the branch is protected, let github-actions push to it (docs/ci.md)")
