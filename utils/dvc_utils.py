"""DVC as a command of its own: its cache and remote, and the one run of the pipeline."""

import importlib.metadata
import importlib.util
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from src.core.errors import InvalidParams, RunAgain, Undecided
from utils.git_utils import authored
from utils.process import redacted

logger = logging.getLogger(__name__)
_SECONDS = 10
_PLUGINS = {"s3": "dvc_s3", "ssh": "dvc_ssh", "gs": "dvc_gs", "azure": "dvc_azure", "webdavs": "dvc_webdav"}


def pull() -> None:
    """Fetch data, models and the run cache; what nobody pushed yet is left to the pipeline to make."""
    _with_remote("pull", "--run-cache", "--allow-missing")


def push() -> None:
    """Send data, models and the run cache to the remote, for the next clone."""
    _with_remote("push", "--run-cache")


def reproduce(settings: Sequence[str]) -> int:
    """Run the pipeline once, with parameters for this run only, if there are any; returns DVC's exit code."""
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
                       "`champion doctor` and run it again")


def _dvc(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], env=_environment(), check=False).returncode


def _environment() -> Mapping[str, str]:
    """The stages' `python` is this one, and an experiment has an author even if git knows none."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    try:
        known = subprocess.run(["git", "config", "user.email"], capture_output=True, check=False).returncode == 0
    except OSError:
        known = False
    author = {} if known else authored("Champion", "champion@localhost")
    return {**author, **os.environ, "PATH": path}


@dataclass(frozen=True)
class Remote:
    """The default remote, by name and address."""

    name: str
    url: str

    @property
    def scheme(self) -> str:
        """s3, https, ssh...; empty for a folder."""
        return urlsplit(self.url).scheme


def default_remote() -> Remote | None:
    """The remote that `dvc push` and `dvc pull` use, None if none is set; raises InvalidParams outside of DVC."""
    with _reading():
        config = _config()
        name = config["core"].get("remote")
        return Remote(name, str(config["remote"][name]["url"])) if name else None


def look(remote: Remote) -> str:
    """Look at a remote's root, changing nothing; returns what was found.

    Raises InvalidParams if DVC lacks a package for it, Undecided if it cannot be reached or refuses.
    """
    module = _PLUGINS.get(remote.scheme)
    if module and importlib.util.find_spec(module) is None:
        package = f"dvc[{remote.scheme}]=={importlib.metadata.version('dvc')}"
        raise InvalidParams(f"dvc: {remote.scheme} remotes need a package; pip install '{package}'")
    try:
        done = subprocess.run([sys.executable, "-m", "dvc", "list-url", f"remote://{remote.name}"], check=False,
                              capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise Undecided(f"dvc: {remote.url}: no answer within {_SECONDS} s; check the network and the "
                        "address in .dvc/config") from None
    if not done.returncode:
        return "reachable" if remote.scheme or os.access(remote.url, os.W_OK) else "readable alone"
    reason = _reason(done)
    if remote.scheme in ("http", "https") and "404" in reason:
        return "reachable"  # such a server has files and lists no folder
    if re.search(r"\b40[13]\b|Forbidden|AccessDenied|InvalidAccessKey|SignatureDoesNotMatch|credentials", reason):
        raise Undecided(f"dvc: {remote.url}: refused ({reason}); set its credentials, docs/remotes.md")
    remedy = "check the address in .dvc/config and the network"
    if "No such file or directory" in reason and not remote.scheme:
        remedy = "mount or make the folder"
    raise Undecided(f"dvc: {remote.url}: cannot be reached ({reason}); {remedy}")


def keep_secret(name: str, values: Mapping[str, str]) -> None:
    """Write options of a remote to .dvc/config.local, which git ignores and only its owner may read.

    Not by a command line, which is for everybody on the machine to see.
    """
    config = _config()
    path = Path(config.files["local"])
    path.touch(mode=0o600)
    path.chmod(0o600)
    with _reading(), config.edit("local") as local:
        local["remote"][name] = {**local["remote"].get(name, {}), **values}


def _config() -> Any:
    """DVC's own module: its command line takes half a second for each question, and breaks long addresses."""
    from dvc.config import Config

    config = Config.from_cwd()
    if "repo" not in config.files:
        raise InvalidParams("dvc: no .dvc folder here; run it in the repository's root")
    return config


@contextmanager
def _reading() -> Iterator[None]:
    from dvc.exceptions import DvcException

    try:
        yield
    except (DvcException, KeyError) as error:
        raise InvalidParams(f"dvc: {redacted(' '.join(str(error).split()))}; correct .dvc/config") from None


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    """DVC's error in one line, without its `ERROR:` and its invitation."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    first = (lines or done.stderr.splitlines() or ["it failed"])[0].removeprefix("ERROR: ")
    return redacted(" ".join(first.split()))[:300]
