"""The doctor's world as fixtures."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.serving import make_server

from scripts.commands import diagnose
from tests.fakes.doctor_world import LOGIN, World
from tests.fakes.loopback_hub import WRITE, LoopbackHub
from tests.fakes.mlflow_proxy import MlflowProxy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Iterator[str]:
    """MLflow's own application over an sqlite store, in a thread: `mlflow server` takes many times as long to start."""
    root = tmp_path_factory.mktemp("doctor")
    (root / "mlflow.db").write_bytes(migrated_store.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{root}/mlflow.db")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(root / "artifacts"))
        from mlflow.server import app

        served = make_server("127.0.0.1", 0, app, threaded=True)
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture
def world(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    for name in diagnose.IMPATIENT:
        monkeypatch.setenv(name, "")  # so that what is set is undone
    for name in ("DAGSHUB_CLIENT_HOST", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with MlflowProxy(server, login=LOGIN) as mlflow, LoopbackHub(tmp_path / "hub") as hub:
        world = World(tmp_path, mlflow, hub, monkeypatch)
        world.set(MLFLOW_TRACKING_URI=mlflow.url, MLFLOW_TRACKING_USERNAME=LOGIN[0],
                  MLFLOW_TRACKING_PASSWORD=LOGIN[1], HF_TOKEN=WRITE, HF_ENDPOINT=hub.url,
                  HF_HOME=str(tmp_path / "home"))
        yield world
