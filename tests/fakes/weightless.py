"""The deployment script, whole, but for the weights: nothing is merged, and a text is registered in their place.

`call` runs it in this process; `python tests/fakes/weightless.py FLAGS` is the same as a process of its own.
"""

import logging
import signal
import sys
from pathlib import Path

import pytest

from scripts import deployment_script
from scripts.commands import deploy
from src.model_selection import Decision
from utils import process


def call(*flags: str, weights: bool = False) -> int:
    """Run the command; returns its exit code. With weights it is the true one, merging and all."""
    root, before = logging.getLogger(), sys.argv
    handlers, disposition = root.handlers[:], signal.getsignal(signal.SIGTERM)
    asked = deployment_script.Deployment()
    sys.argv = ["deployment_script.py", *flags]
    try:
        with pytest.MonkeyPatch.context() as patch:
            if not weights:
                without_weights(patch)
            process.run(asked.run, announce=asked.failed)
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
        root.handlers[:] = handlers
        signal.signal(signal.SIGTERM, disposition)
    raise AssertionError("unreachable: a stage ends by exiting")


def without_weights(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deploy.Deployer, "_assemble", _assemble)
    patch.setattr(deploy, "_save", save)


def _assemble(_deployer: deploy.Deployer, _decision: Decision) -> None:
    """results/release lies there already."""


def save(folder: Path) -> None:
    """In the layout of MLflow's transformers flavour, as far as a release is made of it."""
    for path, text in {"model.txt": "stands for the weights", "model/model.safetensors": "weights",
                       "components/tokenizer/tokenizer.json": "{}"}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


if __name__ == "__main__":
    sys.exit(call(*sys.argv[1:]))
