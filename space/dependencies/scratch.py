"""A strategy in an environment of its own, made and thrown away."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dependencies.strategies import SPACE

if TYPE_CHECKING:
    from dependencies.strategies import Strategy


class ScratchError(Exception):
    """It does not resolve, or what is installed is not sound; the text is what the tools said."""


@dataclass(frozen=True)
class Built:
    """An environment that is sound."""

    packages: int
    megabytes: float  # of 1,000,000 bytes
    seconds: float


def build(strategy: Strategy, folder: Path) -> Built:
    """Make the environment with pip, and assert it as the image's build does; raises ScratchError."""
    begun = time.monotonic()
    _run(sys.executable, "-m", "venv", str(folder))
    python = str(folder / "bin/python")
    with tempfile.NamedTemporaryFile("w", dir=SPACE, prefix=".scratch.", suffix=".txt") as requirements:
        requirements.write(strategy.text)  # beside requirements/, which it names
        requirements.flush()
        _run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", requirements.name)
        seconds = time.monotonic() - begun
        _run(python, "-m", "pip", "check", "--disable-pip-version-check")
        size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
        _run(python, str(SPACE / "assert_build.py"), "--requirements", requirements.name)
    return Built(len(strategy.complete), size / 1e6, seconds)


def _run(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ScratchError((ended.stdout + ended.stderr).strip())
