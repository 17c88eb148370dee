"""Good services for the doctor, as fixtures, and the ways to break them."""

import importlib.metadata
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from werkzeug.serving import make_server

from scripts.commands import diagnose
from scripts.commands.diagnose import Check
from src.core.params import load_params
from tests.fakes.loopback_hub import READ, SCOPED, UNKNOWN, WRITE, LoopbackHub
from tests.fakes.mlflow_proxy import Call, Fault, Kind, MlflowProxy
from utils.hub.repository import Patience

ROOT = Path(__file__).parents[2]
LOGIN = ("alice", "mlflow-canary")
REPO = "acme/shop"
NOWHERE = "http://127.0.0.1:9"
DVC = importlib.metadata.version("dvc")
SECRETS = (LOGIN[1], WRITE, READ, "another-canary", "third-canary")


@dataclass
class World:
    """Services that are good, until a test breaks one."""

    root: Path
    mlflow: MlflowProxy
    hub: LoopbackHub
    patch: pytest.MonkeyPatch

    def set(self, **names: str) -> None:
        for name, value in names.items():
            self.patch.setenv(name, value)

    def answer(self, instead: Callable[[Call], tuple[int, bytes] | None]) -> None:
        """In MLflow's place, if it is something."""
        self.mlflow.instead = lambda call, _body: instead(call)

    def lose(self, *endpoints: str) -> None:
        self.mlflow.missing = endpoints

    def params(self, **deployment: object) -> Path:
        values = yaml.safe_load((ROOT / "params.yaml").read_bytes())
        values["deployment"] |= {"huggingface": {**values["deployment"]["huggingface"], "model_id": REPO,
                                                 "push_to_hub": True}, **deployment}
        path = self.root / "params.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def check(self, service: str, **deployment: object) -> Check:
        """One service's line."""
        params = load_params(self.params(**deployment))
        (found,) = diagnose.performed({service: diagnose.checks(params)[service]})
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Iterator[str]:
    """MLflow's own application over an sqlite store, in a thread: `mlflow server` takes many times as long to start."""
    root = tmp_path_factory.mktemp("doctor")
    (root / "mlflow.db").write_bytes(migrated_store.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{root}/mlflow.db")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
        patch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(root / "artifacts"))
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


def mlflow_hangs(world: World) -> None:
    world.patch.setattr(diagnose, "MLFLOW_SECONDS", 1)
    world.mlflow.fault = Fault(Kind.HUNG, "POST experiments/search")


def read_only_mlflow(world: World) -> None:
    no = 403, json.dumps({"error_code": "PERMISSION_DENIED", "message": "Permission denied"}).encode()
    world.answer(lambda call: no if call.method == "POST" and "search" not in call.path else None)


def rewritable_params(world: World) -> None:
    world.answer(lambda call: (200, b"{}") if call.endpoint == "POST runs/log-parameter" else None)
    world.patch.setattr("utils.tracking.ledger.MlflowLedger._stored", lambda *_: "rewritten")


def hub_hangs(world: World) -> None:
    world.patch.setattr(diagnose, "_PATIENCE", Patience(1, 1, 1, 1, 1))
    world.hub.fault("/whoami", delay=3)


def dagshub(world: World, token: str = LOGIN[1], **others: str) -> None:
    world.set(DAGSHUB_CLIENT_HOST=world.mlflow.url, MLFLOW_TRACKING_PASSWORD="", MLFLOW_TRACKING_USERNAME="",
              DAGSHUB_USER_TOKEN=token, **others)
    user = json.dumps({"id": 1, "login": LOGIN[0], "full_name": "Alice", "username": LOGIN[0]}).encode()
    world.answer(lambda call: (200, user) if call.path == "/api/v1/user" else None)


def dagshub_down(world: World) -> None:
    dagshub(world, "third-canary")  # its client remembers answers
    world.mlflow.kill()


BREAKING: Mapping[str, Callable[[World], None]] = {
    "good": lambda _: None,
    "without login": lambda world: world.set(MLFLOW_TRACKING_USERNAME="", MLFLOW_TRACKING_PASSWORD=""),
    "wrong login": lambda world: world.set(MLFLOW_TRACKING_PASSWORD="another-canary"),
    "credentials in the address": lambda world: world.set(
        MLFLOW_TRACKING_URI=world.mlflow.url.replace("://", "://alice:mlflow-canary@")),
    "mlflow down": lambda world: world.mlflow.kill(),
    "mlflow hangs": mlflow_hangs,
    "a page instead": lambda world: world.answer(lambda _: (200, b"<html>log in</html>")),
    "mlflow too old": lambda world: world.answer(lambda call: (200, b"2.2.2") if call.path == "/version" else None),
    "rewritable params": rewritable_params,
    "read-only mlflow": read_only_mlflow,
    "no registry": lambda world: world.lose("registered-models", "model-versions"),
    "no aliases": lambda world: world.lose("registered-models/alias"),
    "dagshub": dagshub,
    "without dagshub token": lambda world: dagshub(world, ""),
    "wrong dagshub token": lambda world: dagshub(world, "another-canary"),
    "dagshub by name": lambda world: dagshub(world, "", DAGSHUB_USERNAME=LOGIN[0], DAGSHUB_TOKEN=LOGIN[1]),
    "wrong dagshub name": lambda world: dagshub(world, "", DAGSHUB_USERNAME="mallory", DAGSHUB_TOKEN=LOGIN[1]),
    "dagshub down": dagshub_down,
    "nothing pushed": lambda world: world.set(DEPLOY_SKIP_HF_PUSH="true"),
    "without hub token": lambda world: world.set(HF_TOKEN=""),
    "wrong hub token": lambda world: world.set(HF_TOKEN=UNKNOWN),
    "read-only hub token": lambda world: world.set(HF_TOKEN=READ),
    "hub token for another repository": lambda world: world.set(HF_TOKEN=SCOPED),
    "hub down": lambda world: world.set(HF_ENDPOINT=NOWHERE),
    "hub hangs": hub_hangs,
}
