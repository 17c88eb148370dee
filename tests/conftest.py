"""What all tests share: no account, no token, and an MLflow store of their own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.core.params import MlflowParams
from tests.fakes import lanes
from tests.fakes.space_process import SPACE

TOKENS = ("HF_TOKEN", "HUGGINGFACE_HUB_TOKEN", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME",
          "MLFLOW_TRACKING_PASSWORD", "DAGSHUB_USERNAME", "DAGSHUB_TOKEN", "DAGSHUB_USER_TOKEN",
          "DEPLOY_FORCE", "DEPLOY_REASON", "DEPLOY_SKIP_HF_PUSH", "CI", "MLFLOW_RUN_ID",
          "GITHUB_ACTIONS", "GITHUB_ACTOR", "GITHUB_HEAD_REF", "GITHUB_REF_NAME",
          "GITHUB_EVENT_NAME", "GITHUB_REF_TYPE", "GITHUB_TOKEN", "GITHUB_SERVER_URL", "HF_OIDC_RESOURCE",
          "PIPELINE_PROFILE", "PIPELINE_MIN_IMPROVEMENT_THRESHOLD")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--light", action="store_true",
                     help="only test files that need no torch, server, browser or other process")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("light"):
        sys.addaudithook(_refuse_what_is_heavy)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    light = config.getoption("light") and collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if light and lanes.needs(collection_path) else None


def _refuse_what_is_heavy(event: str, arguments: tuple[object, ...]) -> None:
    if event in lanes.EVENTS or (event == "import" and arguments[0] in lanes.LIBRARIES):
        raise AssertionError(f"{event} {arguments[0]} in a light test: see tests/fakes/lanes.py")


@pytest.fixture(autouse=True)
def _no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TOKENS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def modules_of_space(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """space/ to import from, as its own programs do, for one test."""
    monkeypatch.syspath_prepend(str(SPACE))
    yield
    for name, module in [*sys.modules.items()]:
        if (getattr(module, "__file__", None) or "").startswith(f"{SPACE}/"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sqlite store with MLflow's tables and nothing in it: making one takes seconds, copying it does not."""
    from utils.tracking import store

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    store.prepare(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a base model of two layers, which no test changes."""
    from tests.fakes.tiny_model import write_base

    folder = tmp_path_factory.mktemp("base")
    write_base(folder)
    return folder


@pytest.fixture
def mlflow_params(tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowParams:
    """Parameters of a fresh sqlite store in a folder of its own, which is also the working directory."""
    (tmp_path / "mlflow.db").write_bytes(migrated_store.read_bytes())
    monkeypatch.chdir(tmp_path)
    return MlflowParams(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment_name="test-evaluation",
                        deadline_seconds=120)
