"""A repository whose stages ran up to the deployment, on a model of two layers: real weights, quickly made."""

import shutil
import sys
from pathlib import Path

import pytest

from scripts import evaluation_script
from tests.fakes import tiny_model
from tests.fakes.history_store import write_params
from tests.fakes.promoted import PUSHING, SOURCE


def make(root: Path, migrated_store: Path) -> Path:
    """Write it below `root`, which must be the working directory; returns params.yaml."""
    shutil.copyfile(migrated_store, root / "mlflow.db")
    tiny_model.write_stages(root)
    config = write_params(root, SOURCE, huggingface=PUSHING, resamples=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluation_script.py", "--config", str(config)])
        patch.setenv("HF_MODULES_CACHE", str(root / "modules"))
        assert evaluation_script.main() == 0
    return config
