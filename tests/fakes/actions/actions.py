"""The actions that our workflows use, as far as they matter to a step after them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.actions.expressions import UnknownExpression

NO_ACCOUNT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
_VENV = Path(sys.executable).parents[1]
Given = Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """Where a job works, and on what commit of what branch."""

    workspace: Path
    artifacts: Path
    remote: str
    branch: str
    sha: str


def _checkout(place: Place, given: Given) -> None:
    """As actions/checkout: one commit deep, on a local branch, no credentials left behind."""
    assert given == {"persist-credentials": "false"}
    there = f"refs/remotes/origin/{place.branch}"
    git(place.workspace, "init", "--quiet")
    git(place.workspace, "remote", "add", "origin", place.remote)
    git(place.workspace, "fetch", "--quiet", "--depth=1", "--no-tags", "origin", f"+{place.sha}:{there}")
    git(place.workspace, "checkout", "--quiet", "-B", place.branch, there)


def _setup_python(place: Place, _given: Given) -> None:
    venv = place.workspace / ".venv"
    venv.mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (venv / part).symlink_to(_VENV / part)
    (venv / ".ready").touch()  # the checkout's files are older


def _upload(place: Place, given: Given) -> None:
    """Paths and `!` exceptions below the workspace; nothing hidden. One folder on its own loses its name."""
    kept, target = given["path"].split(), place.artifacts / given["name"]
    wanted = [Path(each) for each in kept if not each.startswith("!")]
    barred = [Path(each[1:]) for each in kept if each.startswith("!")]
    root = place.workspace / wanted[0] if len(wanted) == 1 else place.workspace
    files = [path for path in sorted(place.workspace.rglob("*")) if path.is_file()
             and any((each := path.relative_to(place.workspace)).is_relative_to(folder) for folder in wanted)
             and not any(each.is_relative_to(folder) for folder in barred)
             and not any(part.startswith(".") for part in each.parts)]
    assert files or given["if-no-files-found"] != "error", f"artifact {given['name']}: no files"
    for path in files:
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _download(place: Place, given: Given) -> None:
    shutil.copytree(place.artifacts / given["name"], place.workspace, dirs_exist_ok=True)


ACTIONS: Mapping[str, tuple[set[str], Callable[[Place, Given], None]]] = {
    "actions/checkout": ({"persist-credentials"}, _checkout),
    "actions/setup-python": ({"python-version", "cache", "cache-dependency-path"}, _setup_python),
    "actions/upload-artifact": ({"name", "path", "if-no-files-found", "retention-days"}, _upload),
    "actions/download-artifact": ({"name"}, _download),
}


def known(found: Collection[object], wanted: Collection[object], where: str) -> None:
    """What is found beyond what is known is an error."""
    if extra := set(found) - set(wanted):
        raise UnknownExpression(f"{where}: {', '.join(map(str, extra))}: not known to this harness")


def git(folder: Path, *arguments: str) -> str:
    """What git prints; raises CalledProcessError."""
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True,
                          env={**os.environ, **NO_ACCOUNT}).stdout.strip()
