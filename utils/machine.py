"""The machine that a command runs on: its Python, its disk and its accelerator."""

import platform
import shutil
import subprocess
from pathlib import Path

_SECONDS = 5


def python() -> tuple[int, int]:
    """Major and minor version of this Python."""
    major, minor = platform.python_version_tuple()[:2]
    return int(major), int(minor)


def free_bytes(folder: Path) -> int:
    """What is left on the disk of a folder."""
    return shutil.disk_usage(folder).free


def accelerator() -> str | None:
    """Name and memory of the NVIDIA GPUs, as their own tool has them; None without one. (torch takes seconds.)"""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip()) or None
