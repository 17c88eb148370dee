"""A copy of space/ with the tiny bundle in it, and deploy.py run there against the loopback hub."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fakes.loopback.server import LoopbackHub
from tests.fakes.loopback.store import WRITE
from tests.fakes.space_process import PYTHON, SPACE, unpack

NAME = "acme/chat"


class Ended(NamedTuple):
    """How deploy.py ended."""

    code: int
    out: str
    err: str
    record: dict[str, Any]


@dataclass
class Shop:
    folder: Path
    hub: LoopbackHub
    first: dict[str, Any] = field(default_factory=dict)  # record of the push that made the Space

    def run(self, *flags: str, program: str = "deploy.py", **changes: str) -> Ended:
        record = self.folder.parent / "record.json"
        record.unlink(missing_ok=True)
        flags = (*flags, "--record", str(record)) if program == "deploy.py" else flags
        done = subprocess.run([PYTHON, self.folder / program, *flags], env=self.environment(**changes), text=True,
                              capture_output=True, stdin=subprocess.DEVNULL, check=False)
        written = record.read_text() if record.exists() else "{}"
        assert WRITE not in done.stdout + done.stderr + written
        return Ended(done.returncode, done.stdout, done.stderr, json.loads(written))

    def start(self, *flags: str, **more: Any) -> subprocess.Popen[str]:
        """Without waiting for its end."""
        return subprocess.Popen([PYTHON, self.folder / "deploy.py", "--space", NAME, *flags], text=True,
                                env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)

    def push(self, *flags: str, **changes: str) -> Ended:
        return self.run("--auto", "--push", "--space", NAME, "--wait", "60", "--settle", "2", *flags, **changes)

    def environment(self, **changes: str) -> dict[str, str]:
        home = str(self.folder.parent / "home")
        return {"PATH": os.environ["PATH"], "HOME": home, "HF_HOME": home, "HF_ENDPOINT": self.hub.url,
                "HF_TOKEN": WRITE, "NO_PROXY": "127.0.0.1,localhost", **changes}

    @property
    def commits(self) -> list[str]:
        """Titles of what was committed after the Space was made, newest first."""
        repo = self.hub.repos[f"spaces/{NAME}"]
        return [commit["title"] for _, commit in self.hub.ancestors(repo, "main")][:-1]

    @property
    def head(self) -> str:
        return self.hub.history(NAME, kind="spaces")[0]

    def made(self) -> bool:
        """Whether the Space exists."""
        return f"spaces/{NAME}" in self.hub.repos

    def identify(self, **changes: object) -> None:
        """Another identity for the bundle: as if another release had been made into one."""
        path = self.folder / "assets/identity.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=2))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with open_shop(tmp_path) as opened:
        yield opened


@contextmanager
def open_shop(folder: Path) -> Iterator[Shop]:
    with LoopbackHub(folder / "hub") as hub:
        hub.spaces.python = str(PYTHON)
        others = shutil.ignore_patterns(".*_cache", ".venv*", "assets", "__pycache__")
        shutil.copytree(SPACE, folder / "space", ignore=others)
        unpack(folder / "model").rename(folder / "space/assets")
        shop = Shop(folder / "space", hub)
        stated = json.loads((shop.folder / "assets/identity.json").read_text())
        (shop.folder / "assets/validation.json").write_text(json.dumps(
            {"verdict": "SAFE", "serves": stated["weights"], "model_digest": stated["model_digest"]}))
        yield shop
