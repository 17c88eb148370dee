"""A working copy of this tree as a repository of its own, and the commands that are run in it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
# Parameters for a minute's work.
SMALL: dict[str, Any] = {
    "model": {"pocket": {"hidden_size": 32, "layers": 1, "epochs": 1}},
    "fine_tuning": {"epochs": 1}, "evaluation": {"max_rows": 16, "max_new_tokens": 16},
    "deployment": {"verified_rows": 2},
}

# Parameters for a model that learns nothing, over everything else as shipped.
SHRUNK: dict[str, Any] = {
    "model": {"pocket": {"hidden_size": 32, "layers": 1, "epochs": 1}},
    "evaluation": {"max_new_tokens": 24},
}


class Clone:
    """A working copy and the commands that are run in it."""

    def __init__(self, root: Path, server: str) -> None:
        self.root = root
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "HF_", "GITHUB_"))
        } | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(root),
             "MLFLOW_TRACKING_URI": server, "OMP_NUM_THREADS": "1", "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@e",
             "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@e", "HF_HUB_OFFLINE": "1"}

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def reproduce(self) -> tuple[list[str], str]:
        """Run the pipeline; the stages that did not skip, and what the deployment came to."""
        said = self.run("dvc", "repro")
        (result,) = re.findall(r"^PROMOTE result=(\w+) code=0 ", said, flags=re.MULTILINE)
        return re.findall(r"^Running stage '(\w+)'", said, flags=re.MULTILINE), result

    def change(self, values: dict[str, Any]) -> None:
        path = self.root / "params.yaml"
        path.write_text(yaml.safe_dump(laid_over(yaml.safe_load(path.read_text()), values), sort_keys=False))

    def recorded(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.root / "results/deployment" / name).read_text()))


def laid_over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return base | {key: laid_over(base[key], value) if isinstance(value, dict) else value
                   for key, value in changes.items()}


def copy_of_this_tree(clone: Clone, *, rows: int) -> None:
    """Write the files of this working tree without its tests and results, the shipped data cut to so many rows."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True,
                            text=True, check=True).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "results/")) and name != "dvc.lock":
            (clone.root / name).parent.mkdir(parents=True, exist_ok=True)
            (clone.root / name).write_bytes((ROOT / name).read_bytes())
    data = clone.root / "data/customer_support.csv"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[: rows + 1]))
    clone.run("git", "init", "-q", "-b", "main")
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-qm", "Clone")


def shell_environment(clone: Clone, home: Path) -> dict[str, str]:
    """What a reader's plain shell has, in a clone that is given the environment of these tests as its .venv."""
    (clone.root / ".venv").symlink_to(Path(sys.prefix))
    for name in ("requirements.txt", "requirements.lock", "pyproject.toml"):
        os.utime(clone.root / name, (0, 0))  # so that make finds that environment up to date
    return {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(clone.root), "OMP_NUM_THREADS": "2", "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@e",
            "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@e"}
