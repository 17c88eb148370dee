"""The server names the places of artifacts: a path of this machine is refused, and nothing there changes."""

import contextlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from scripts import history_script, report_script, status_script
from scripts.commands import diagnose
from src.core.errors import Undecided
from src.core.params import Params, load_params
from tests.fakes.history_store import answers, challenger, write_params
from tests.fakes.mlflow_proxy import Call, MlflowProxy, SqliteServer
from tests.fakes.postgres import MlflowServer
from tests.fakes.promoted import NAME, SOURCE, run
from tests.fakes.weightless import call
from utils import mlflow_utils
from utils.answers import logged_predictions
from utils.tracking import registry, runs
from utils.tracking.history import HistoryRuns
from utils.tracking.registry import MlflowRegistry

pytest_plugins = ["tests.fakes.server_fixtures"]

EXPERIMENT = "ecommerce-chatbot-evaluation"


def params() -> Params:
    return load_params(Path("params.yaml"))


def connected() -> mlflow_utils.Client:
    return mlflow_utils.connect(params().mlflow)


@pytest.fixture
def shop(mlflow_server: SqliteServer, migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
         ) -> SqliteServer:
    """A model that was promoted on a real server, and `victim/model` on this machine, beside it."""
    mlflow_server.put_back(migrated_store)
    (tmp_path / "shop").mkdir()
    monkeypatch.chdir(tmp_path / "shop")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    write_params(Path(), SOURCE)
    challenger(params(), "one", answers(10))
    assert call() == 0
    (tmp_path / "victim/model").mkdir(parents=True)
    (tmp_path / "victim/model/model.txt").write_text("mine")
    (tmp_path / "victim/predictions.jsonl").write_text("mine")
    return mlflow_server


def below(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def move(server: SqliteServer, address: str) -> None:
    """Make the server say that the files of every run and version are at this address."""
    with contextlib.closing(sqlite3.connect(server.database)) as store, store:
        store.execute("UPDATE runs SET artifact_uri = ?", (address,))
        store.execute("UPDATE model_versions SET source = ?, storage_location = ?", (f"{address}/model",) * 2)


def _write_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.txt").write_text("new")


USES: dict[str, Callable[[MlflowClient, str, Path], object]] = {
    "weights are deleted": lambda client, _run, _folder: MlflowRegistry(
        client, NAME, save=lambda _: None, run_id=str, tags=dict).delete_weights(1),
    "a version is fetched": lambda client, _run, folder: registry.fetch_version(client, NAME, 1, folder),
    "answers are read": lambda client, run_id, _folder: logged_predictions(client, run_id),
    "evidence is read": lambda client, run_id, folder: HistoryRuns(
        client, experiment=EXPERIMENT, model_name=NAME).download(run_id, "predictions.jsonl", folder),
    "an evaluation is logged": lambda client, run_id, _folder: runs.log_evaluation(
        client, run_id, {"bleu1": 0.5}, [Path("params.yaml")]),
    "a page is logged": lambda client, run_id, _folder: runs.log_page(client, run_id, "<p>page</p>"),
    "a model is kept": lambda client, run_id, _folder: registry.keep_model(client, run_id, _write_model),
    "a version is registered": lambda client, run_id, _folder: MlflowRegistry(
        client, NAME, save=lambda _: None, run_id=lambda: run_id, tags=dict).use_up(3),
}


@pytest.mark.parametrize("form", ["file://{}", "{}", "FILE:{}", "file:{}", "../victim"])
def test_a_path_on_this_machine_is_neither_read_nor_written_nor_deleted(
    shop: SqliteServer, tmp_path: Path, form: str
) -> None:
    client, before = connected(), below(tmp_path / "victim")
    [version] = client.search_model_versions(f"name = '{NAME}'")
    move(shop, form.format(tmp_path / "victim"))
    for use in USES.values():
        with pytest.raises(Undecided, match="a path on this machine that the server chose; start it with `mlfl"):
            use(client, version.run_id, tmp_path / "fetched")
    assert below(tmp_path / "victim") == before
    assert not (tmp_path / "fetched").exists()


def test_an_address_that_leads_to_a_path_on_this_machine_is_refused_like_the_path(
    shop: SqliteServer, tmp_path: Path
) -> None:
    client = connected()
    [version] = client.search_model_versions(f"name = '{NAME}'")
    move(shop, f"file://{tmp_path}/victim")
    with contextlib.closing(sqlite3.connect(shop.database)) as store, store:
        store.execute("UPDATE model_versions SET storage_location = ?", (f"runs:/{version.run_id}/model",))
    with pytest.raises(Undecided, match="a path on this machine that the server chose"):
        registry.fetch_version(client, NAME, 1, tmp_path / "fetched")


def doctors_code(patch: pytest.MonkeyPatch) -> int:
    for name in diagnose.IMPATIENT:
        patch.setenv(name, "")  # so that what the doctor sets is undone
    [found] = diagnose.performed({"mlflow": diagnose.checks(params())["mlflow"]})
    assert found.code == 0 or found.remedy.startswith("start it with `mlflow server --serve-artifacts")
    return found.code


def test_every_stage_that_logs_ends_with_4_and_leaves_the_path_alone(
    shop: SqliteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = below(tmp_path / "victim")
    challenger(params(), "two", answers(20))
    move(shop, f"file://{tmp_path}/victim")
    assert call() == 4
    assert "a path on this machine that the server chose" in capsys.readouterr().err
    run_id = json.loads(Path("results/deployment/deployment_info.json").read_text()).get("deployment_run")
    assert run_id is None
    with pytest.raises(Undecided):
        run(report_script)
    with contextlib.closing(sqlite3.connect(shop.database)) as store, store:
        store.execute("UPDATE experiments SET artifact_location = ?", (f"file://{tmp_path}/victim",))
        count = store.execute("SELECT count(*) FROM runs").fetchone()
    assert doctors_code(monkeypatch) == 4
    for kind in ("fine_tuning", "evaluation"):
        with pytest.raises(Undecided), mlflow_utils.stage_run(params().mlflow, kind=kind, name=kind, tags={}):
            raise AssertionError("unreachable: the stage would work now")
    with contextlib.closing(sqlite3.connect(shop.database)) as store:
        assert store.execute("SELECT count(*) FROM runs").fetchone() == count
    assert below(tmp_path / "victim") == before


@pytest.mark.parametrize("path", ["../../victim/model", "/victim", "a/../../b"])
def test_a_listing_that_leads_out_of_a_runs_artifacts_is_undecided(
    shop: SqliteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    before = below(tmp_path)

    def listing(call: Call, _body: bytes) -> tuple[int, bytes] | None:
        if "artifacts?" not in call.path:
            return None
        return 200, json.dumps({"files": [{"path": path, "is_dir": False, "file_size": 4}]}).encode()

    with MlflowProxy(shop.url, instead=listing) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        client = connected()
        [version] = client.search_model_versions(f"name = '{NAME}'")
        for name in ("a version is fetched", "answers are read"):
            with pytest.raises(Undecided):
                USES[name](client, version.run_id, tmp_path / "fetched")
        with pytest.raises(Undecided):
            mlflow_utils.fetch_files(client, version.run_id, "model", tmp_path / "fetched")
    assert below(tmp_path) == before


@pytest.fixture
def unserved(tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    """`mlflow server --no-serve-artifacts --default-artifact-root tmp/root`, and a challenger in the working folder."""
    (tmp_path / "server.db").write_bytes(migrated_store.read_bytes())
    (tmp_path / "shop").mkdir()
    monkeypatch.chdir(tmp_path / "shop")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write_params(Path(), SOURCE)
    with MlflowServer(f"sqlite:///{tmp_path}/server.db", tmp_path / "root", workers=1, served=False) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        yield server


def test_a_server_that_leaves_artifacts_to_its_clients_is_refused_until_it_serves_them(
    unserved: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("alembic").setLevel(logging.ERROR)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    challenger(params(), "one", answers(10))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unserved.url)
    assert doctors_code(monkeypatch) == 4
    assert call() == 4
    assert "start it with `mlflow server --serve-artifacts" in capsys.readouterr().err
    assert below(tmp_path / "root") == {}
    assert connected().get_experiment_by_name(EXPERIMENT) is None
    with MlflowServer(f"sqlite:///{tmp_path}/server.db", tmp_path / "root", workers=1) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        assert doctors_code(monkeypatch) == 0
        assert call() == 0
    assert [name for name in below(tmp_path / "root") if name.endswith("/artifacts/model/model.txt")]


def test_a_history_with_artifacts_on_a_disk_moves_behind_a_server_as_the_troubleshooting_page_says(
    tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_bytes(migrated_store.read_bytes())
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, SOURCE)
    challenger(params(), "one", answers(10))
    assert call() == 0
    root = Path(connected().get_experiment_by_name(EXPERIMENT).artifact_location.removeprefix("file://")).parent
    page = (SOURCE.parent / "docs/troubleshooting.md").read_text()
    statements = [line for line in page.splitlines() if line.startswith("UPDATE ")]
    assert len(statements) == 3
    with contextlib.closing(sqlite3.connect("mlflow.db")) as store, store:
        for statement in statements:
            store.execute(statement.replace("/srv/mlruns", str(root)))
    with MlflowServer(f"sqlite:///{tmp_path}/mlflow.db", root, workers=1) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        challenger(params(), "two", answers(20))
        assert call() == 0
        kept = mlflow_utils.list_files(connected(), connected().get_model_version(NAME, "1").run_id, "model")
        assert "model/model.txt" in [entry.path for entry in kept]
        assert run(status_script) == 0
        assert run(history_script) == 0
    assert "improved" in capsys.readouterr().out
