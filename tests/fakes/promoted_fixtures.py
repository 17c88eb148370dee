"""Three promotions, made once and copied for each test."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.fakes.history_store import write_params
from tests.fakes.loopback_hub import LoopbackHub
from tests.fakes.promoted import PUSHING, SOURCE, Shop, Status, set_environment
from tests.fakes.promoted import status as status_of

RIGHT = {"one": 10, "two": 20, "three": 30}  # of 40 answers


@pytest.fixture(scope="session")
def three_promotions(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Path:
    root = tmp_path_factory.mktemp("promoted")
    (root / "mlflow.db").write_bytes(migrated_store.read_bytes())
    write_params(root, SOURCE, huggingface=PUSHING)
    with pytest.MonkeyPatch.context() as patch, LoopbackHub(root / "hub") as hub:
        set_environment(patch, root, hub)
        for mark, right in RIGHT.items():
            Shop(root, hub).bring(mark, right)
    return root


@pytest.fixture
def shop(tmp_path: Path, three_promotions: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    shutil.copytree(three_promotions, tmp_path, dirs_exist_ok=True)
    write_params(tmp_path, SOURCE, huggingface=PUSHING)
    with LoopbackHub(tmp_path / "hub") as hub:
        set_environment(monkeypatch, tmp_path, hub)
        yield Shop(tmp_path, hub)


@pytest.fixture
def status(capsys: pytest.CaptureFixture[str]) -> Status:
    return partial(status_of, capsys)
