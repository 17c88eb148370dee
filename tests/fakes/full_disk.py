"""A repository whose results/ is a file system of its own, as small as a test asks for."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import evaluation_script
from tests.fakes import tiny_model
from tests.fakes.faulty_hub import ENOUGH, Resize
from tests.fakes.history_store import write_params
from tests.fakes.loopback_hub import LoopbackHub
from tests.fakes.promoted import PUSHING, SOURCE, Shop, set_environment


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Resize]:
    """Gives results/ a file system of this size, or another size to the one that it has."""
    place = tmp_path / "results"
    mounted: list[Path] = []

    def resize(size: str) -> None:
        place.mkdir(exist_ok=True)
        how = ["-o", f"remount,size={size}"] if mounted else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        done = subprocess.run(["mount", *how, str(place)], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(place)

    yield resize
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def weighty_shop(tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch, disk: Resize
                 ) -> Iterator[Shop]:
    """A first challenger with true weights, evaluated, on that disk."""
    with LoopbackHub(tmp_path / "hub") as hub:
        set_environment(monkeypatch, tmp_path, hub)
        disk(ENOUGH)
        _evaluate(tmp_path, migrated_store)
        yield Shop(tmp_path, hub)


def _evaluate(root: Path, migrated_store: Path) -> None:
    """A model of two layers, made and evaluated in the working directory."""
    shutil.copyfile(migrated_store, root / "mlflow.db")
    tiny_model.write_stages(root)
    config = write_params(root, SOURCE, huggingface=PUSHING, resamples=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluation_script.py", "--config", str(config)])
        patch.setenv("HF_MODULES_CACHE", str(root / "modules"))
        assert evaluation_script.main() == 0
