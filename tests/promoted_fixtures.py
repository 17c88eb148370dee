"""Three promotions, made once and copied for each test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TOKENS
from tests.history_store import write_params
from tests.loopback_hub import WRITE, LoopbackHub
from tests.promoted import REPO, Shop

SOURCE = Path(__file__).parents[1] / "params.yaml"
RIGHT = {"one": 10, "two": 20, "three": 30}  # of 40 answers
PUSHING = {"model_id": REPO, "push_to_hub": True, "create_model_card": True, "private": True, "deadline_seconds": 30}


def _settings(patch: pytest.MonkeyPatch, root: Path, hub: LoopbackHub) -> None:
    patch.chdir(root)
    for name in TOKENS:  # MLflow leaves its address in the environment of the next test
        patch.delenv(name, raising=False)
    for name, value in {"HF_TOKEN": WRITE, "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home"),
                        "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1,localhost"}.items():
        patch.setenv(name, value)


@pytest.fixture(scope="session")
def three_promotions(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Path:
    root = tmp_path_factory.mktemp("promoted")
    (root / "mlflow.db").write_bytes(migrated_store.read_bytes())
    write_params(root, SOURCE, huggingface=PUSHING, resamples=100)
    with pytest.MonkeyPatch.context() as patch, LoopbackHub(root / "hub") as hub:
        _settings(patch, root, hub)
        for mark, right in RIGHT.items():
            Shop(root, hub).bring(mark, right)
    return root


@pytest.fixture
def shop(tmp_path: Path, three_promotions: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    shutil.copytree(three_promotions, tmp_path, dirs_exist_ok=True)
    write_params(tmp_path, SOURCE, huggingface=PUSHING, resamples=100)
    with LoopbackHub(tmp_path / "hub") as hub:
        _settings(monkeypatch, tmp_path, hub)
        yield Shop(tmp_path, hub)
