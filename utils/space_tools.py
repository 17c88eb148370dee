"""The tools of space/, which imports nothing of the rest: each runs as a process, what it says goes to stderr."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from src.errors import IntegrityError, InvalidParams

logger = logging.getLogger(__name__)

SPACE = Path("space")
BUILDER = SPACE / ".venv-builder/bin/python"
SERVING = SPACE / ".venv/bin/python"
SOURCES = ("prepare_assets.py", "validate_bundle.py", "bundling", "serving", "requirements/builder.txt")


def check_environments() -> None:
    """Raises InvalidParams where the environments that make and run a bundle are not installed."""
    for python in (BUILDER, SERVING):
        if not python.exists():
            raise InvalidParams(f"space.enabled: {python} is missing; run `make {python.parents[1]}/.ready`")


def prepare(release: Path, bundle: Path, weights: Sequence[str], *, version: int, questions: Path) -> None:
    """Make a bundle of a release; raises IntegrityError where that fails."""
    code = _run(BUILDER, "prepare_assets.py", "--model", str(release), "--output", str(bundle), "--weights",
                ",".join(weights), "--version", str(version), "--questions", str(questions))
    if code:
        raise IntegrityError(f"{bundle}: prepare_assets.py ended with {code}; see what it says above")


def validate(release: Path, bundle: Path, *, rows: int, max_score_drop: float) -> bool:
    """Whether some of its weights are SAFE; raises IntegrityError where that could not be found out."""
    code = _run(Path(sys.executable), "validate_bundle.py", "--model", str(release), "--bundle", str(bundle), "--rows",
                str(rows), "--max-score-drop", str(max_score_drop))
    if code not in (0, IntegrityError.code):
        raise IntegrityError(f"{bundle}: validate_bundle.py ended with {code}; see what it says above")
    return code == 0


def _run(python: Path, tool: str, *arguments: str) -> int:
    command = [str(python), str(SPACE / tool), *arguments]
    return subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=2, check=False).returncode
