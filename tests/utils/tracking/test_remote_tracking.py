"""A remote MLflow as DagsHub serves it: below a path, behind a login, without logged models."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts import history_script, rollback_script, status_script
from src.core.params import Params, load_params
from src.core.records import read_object
from tests.fakes.history_store import answers, challenger, write_params
from tests.fakes.mlflow_proxy import Call, MlflowProxy, SqliteServer
from tests.fakes.postgres import MlflowServer, PostgresCluster, needs_postgres
from tests.fakes.promoted import NAME, SOURCE, run
from tests.fakes.weightless import call
from utils import mlflow_utils
from utils.tracking.ledger import MlflowLedger

pytest_plugins = ["tests.fakes.server_fixtures"]

Capture = pytest.CaptureFixture[str]
USER, TOKEN, PREFIX = "alice", "canary-of-alice", "/acme/shop.mlflow"
INFO = Path("results/deployment/deployment_info.json")
Answer = Callable[[Call, bytes], tuple[int, bytes] | None]
NEWER = ("logged-models", "server-info")  # endpoints that DagsHub's server does not know


@pytest.fixture
def remote(mlflow_server: SqliteServer, migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
           ) -> Iterator[MlflowProxy]:
    """An empty server behind a path and a login, named by the environment, which holds the right password."""
    mlflow_server.put_back(migrated_store)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write_params(tmp_path, SOURCE)
    with MlflowProxy(mlflow_server.url, prefix=PREFIX, login=(USER, TOKEN), missing=NEWER) as proxy:
        for name, value in {"URI": proxy.url, "USERNAME": USER, "PASSWORD": TOKEN}.items():
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
        yield proxy


def params() -> Params:
    return load_params(Path("params.yaml"))


def bring(mark: str, right: int) -> int:
    challenger(params(), mark, answers(right))
    return call()


def promotions_and_a_rollback(capsys: Capture) -> str:
    """All that the commands say while one model follows another and is taken back."""
    assert [bring("one", 10), bring("two", 20)] == [0, 0]
    assert read_object(INFO)["reason"] == "improved"
    for script in (history_script, status_script, rollback_script, status_script):
        assert run(script) == 0
    said = capsys.readouterr()
    assert "version 2 is the champion" in said.out
    assert "version 1 is the champion" in said.out
    return said.out + said.err + "".join(path.read_text() for path in Path().rglob("*") if path.is_file())


def nothing_is_promoted() -> bool:
    client = mlflow_utils.connect(params().mlflow)
    return MlflowLedger(client, NAME, params().mlflow.experiment_name).view().slots == ()


def test_a_wrong_password_is_undecided_and_not_repeated(
    remote: MlflowProxy, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    challenger(params(), "one", answers(10))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-that-is-wrong")
    assert call() == 4
    error, last = capsys.readouterr().err.splitlines()
    assert "UNAUTHENTICATED" in error
    assert "MLFLOW_TRACKING_PASSWORD are right" in error
    assert last.startswith("PROMOTE result=undecided code=4")
    assert remote.refused_logins == 1
    assert "canary" not in error + last + INFO.read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", TOKEN)
    assert nothing_is_promoted()


def refusing(method: str, name: str, status: int, text: bytes) -> Answer:
    return lambda call, _: (status, text) if (call.method, name in call.path) == (method, True) else None


@pytest.mark.parametrize(("answer", "said"), [
    (refusing("GET", "/", 200, b"<html>Sign in</html>"), "not in a valid JSON format"),
    (refusing("POST", "runs/search", 403, b'{"error_code": "PERMISSION_DENIED"}'), "PERMISSION_DENIED"),
    (refusing("PUT", "model.txt", 413, b"Request Entity Too Large"), "413 Client Error"),
    (refusing("GET", "artifacts?", 200, b"<html>Sign in</html>"), "JSONDecodeError"),
    (refusing("POST", "runs/log-parameter", 200, b"{}"), "use MLflow 2.9 or newer on a SQL store"),
    (refusing("POST", "runs/log-parameter", 400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "had length '
              b'5999, which exceeded 500"}'), "use MLflow 2.9 or newer on a SQL store"),
], ids=["a login page", "runs forbidden", "a proxy that takes no big files", "a login page for the files",
        "a server that keeps no params", "a server that keeps no long params"])
def test_an_answer_that_is_no_answer_is_undecided_in_one_line(
    remote: MlflowProxy, capsys: Capture, answer: Answer, said: str
) -> None:
    challenger(params(), "one", answers(10))
    remote.instead = answer
    assert call() == 4
    error, last = (line for line in capsys.readouterr().err.splitlines() if line.startswith(("ERROR", "PROMOTE")))
    assert said in error
    assert "code=4" in last
    remote.instead = lambda _call, _body: None
    assert nothing_is_promoted()


def test_a_server_without_a_registry_is_undecided_and_told_what_to_use(remote: MlflowProxy, capsys: Capture) -> None:
    remote.missing = (*NEWER, "registered-models", "model-versions")
    assert bring("one", 10) == 4
    assert "has no Model Registry: use MLflow 2.9 or newer on a SQL store, or DagsHub" in capsys.readouterr().err
    assert nothing_is_promoted()


def test_a_big_file_gets_the_time_that_a_server_needs_to_store_it(
    remote: MlflowProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: dict[str, str] = {}
    remote.instead = lambda call, _: waits.update({call.endpoint: os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]})
    monkeypatch.setattr(mlflow_utils, "_BYTES_PER_SECOND", 1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")  # another test's may still stand
    assert bring("one", 10) == 0
    assert (waits["PUT artifacts/model.txt"], waits["POST model-versions/create"]) == (
        str(8 + len("stands for the weights")), "8")


def test_dagshubs_token_alone_is_enough_and_stays_secret(
    remote: MlflowProxy, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    monkeypatch.setenv("DAGSHUB_CLIENT_HOST", remote.url.removesuffix(PREFIX))
    monkeypatch.setenv("DAGSHUB_USER_TOKEN", TOKEN)
    said = promotions_and_a_rollback(capsys)
    assert remote.refused_logins == 0
    assert TOKEN not in said
    client = mlflow_utils.connect(params().mlflow)
    assert {v.source.partition(":")[0] for v in client.search_model_versions(f"name = '{NAME}'")} == {
        "mlflow-artifacts"}


@pytest.mark.slow
@needs_postgres
def test_postgresql_behind_basic_auth_and_a_path_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    shop, artifacts = tmp_path / "shop", tmp_path / "server" / "artifacts"
    shop.mkdir()
    monkeypatch.chdir(shop)
    write_params(shop, SOURCE)
    with PostgresCluster() as cluster, MlflowServer(cluster.migrated("mlflow"), artifacts, auth=(USER, TOKEN),
                                                    prefix=PREFIX) as server:
        for name, value in {"URI": server.url, "USERNAME": USER, "PASSWORD": TOKEN}.items():
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
        assert TOKEN not in promotions_and_a_rollback(capsys)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-that-is-wrong")
        challenger_is_undecided = call() == 4
    assert challenger_is_undecided
    assert "canary" not in capsys.readouterr().err
