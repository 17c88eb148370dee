"""Git in scratch folders, and a colleague called Mona."""

import os
import subprocess
from pathlib import Path

EVIL = '"; echo pwned; #'
MONA = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Mona"), ("EMAIL", "mona@example.com"))}


def git(*arguments: str, **environment: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True,
                          env={**os.environ, **environment}).stdout.strip()


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
