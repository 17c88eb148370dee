"""A repository whose stages ran up to the deployment, on a model of two layers: real weights, quickly made."""

import shutil
import sys
from pathlib import Path

import pytest

from scripts import evaluation_script
from src.core.records import DatasetRef, Datasets, file_sha256
from tests.fakes import tiny_model
from tests.fakes.history_store import write_params
from tests.fakes.promoted import PUSHING, SOURCE
from utils import json_utils


def make(root: Path, migrated_store: Path) -> Path:
    """Write it below `root`, which must be the working directory; returns params.yaml."""
    shutil.copyfile(migrated_store, root / "mlflow.db")
    tiny_model.write_models(root)
    path = "results/data/evaluation.jsonl"
    json_utils.write_lines(root / path, tiny_model.row_objects())
    split = DatasetRef(path=path, sha256=file_sha256(root / path), rows=len(tiny_model.QUESTIONS))
    splits = Datasets(raw=split, train=split, validation=split, evaluation=split)
    json_utils.write_object(root / "results/data/datasets.json", splits.model_dump())
    json_utils.write_object(root / "results/base_model.json", tiny_model.base_ref(root).model_dump())
    json_utils.write_object(root / "results/fine_tuned_model_location.json", tiny_model.fine_tuned(root).model_dump())
    config = write_params(root, SOURCE, huggingface=PUSHING, resamples=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluation_script.py", "--config", str(config)])
        patch.setenv("HF_MODULES_CACHE", str(root / "modules"))
        assert evaluation_script.main() == 0
    return config
