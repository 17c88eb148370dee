import contextlib
import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from src.core.errors import InvalidParams, RunAgain, Undecided
from src.core.params import MlflowParams
from utils import mlflow_utils
from utils.tracking import store


@pytest.mark.parametrize(("uri", "said"), [
    ("http://bot:s3cret@tracking.example/mlflow", "carries credentials"),
    ("postgresql+psycopg://bot:s3cret@host/db", "PGPASSWORD"), ("./mlruns", "use sqlite:///mlflow.db"),
    ("file:///tmp/mlruns", "use sqlite:///mlflow.db"), ("mysql://host/db", "'mysql' is not known"),
    ("postgresql+psycopg2://host/db", "needs the driver psycopg2"),
])
def test_an_unusable_address_is_refused_without_repeating_its_password(uri: str, said: str) -> None:
    with pytest.raises(InvalidParams, match=said) as error:
        store.tracking_uri(uri)
    assert "s3cret" not in str(error.value)


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert store.tracking_uri("sqlite:///mlflow.db") == "http://127.0.0.1:5000"


def test_a_file_that_is_no_database_is_undecided_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("this is not sqlite, and somebody may want it back")
    with pytest.raises(Undecided, match="not a usable MLflow database"):
        store.prepare(f"sqlite:///{path}")
    assert path.read_text().startswith("this is not")


def test_a_half_migrated_store_is_undecided(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    with pytest.raises(Undecided, match="half-migrated"):
        store.prepare(f"sqlite:///{path}")


LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked(path: Path, how: str) -> Iterator[None]:
    """A lock on the file that another process holds."""
    with subprocess.Popen([sys.executable, "-c", LOCKER, path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "locked\n"
        yield
        other.communicate()


def test_a_store_that_another_process_keeps_locked_is_to_be_tried_again_and_not_to_be_restored(
    tmp_path: Path, migrated_store: Path
) -> None:
    path = Path(shutil.copy(migrated_store, tmp_path / "mlflow.db"))
    with locked(path, "BEGIN EXCLUSIVE"), pytest.raises(RunAgain, match=r"mlflow\.db: locked by another process; run"):
        store.prepare(f"sqlite:///{path}")
    store.prepare(f"sqlite:///{path}")


def test_a_write_into_a_locked_store_is_to_be_tried_again(mlflow_params: MlflowParams) -> None:
    client = mlflow_utils.connect(mlflow_params)
    mlflow_utils.ensure_experiment(client, "before", {})
    path = Path(mlflow_params.tracking_uri.removeprefix("sqlite:///"))
    with locked(path, "BEGIN IMMEDIATE"), pytest.raises(RunAgain, match="locked by another process; run it again"):
        mlflow_utils.ensure_experiment(client, "during", {})
    assert mlflow_utils.ensure_experiment(client, "during", {})


@pytest.mark.parametrize("folder", ["shop #1", "50% off", "Laden für alle"])
def test_a_folder_of_any_name_may_hold_the_store(tmp_path: Path, migrated_store: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "mlflow.db").write_bytes(migrated_store.read_bytes())
    params = MlflowParams(tracking_uri=f"sqlite:///{tmp_path}/{folder}/mlflow.db")
    mlflow_utils.ensure_experiment(mlflow_utils.connect(params), "shop", {})
    assert mlflow_utils.find_experiment(mlflow_utils.connect_to_read(params), "shop")
    assert sorted(path.name for path in tmp_path.rglob("*.db")) == ["mlflow.db"]


def test_a_missing_folder_is_undecided(tmp_path: Path) -> None:
    with pytest.raises(Undecided, match="folder does not exist"):
        store.prepare(f"sqlite:///{tmp_path}/absent/mlflow.db")


def _start(uri: str, together: Barrier, ended: "multiprocessing.Queue[str]") -> None:
    together.wait(300)
    try:
        store.prepare(uri)
        from mlflow import MlflowClient

        MlflowClient(uri, uri).search_experiments()
        ended.put("ok")
    except BaseException as error:
        ended.put(repr(error))
        raise


def test_four_first_starts_at_once_on_a_missing_file_all_succeed(tmp_path: Path) -> None:
    uri, context = f"sqlite:///{tmp_path}/mlflow.db", multiprocessing.get_context("spawn")
    ended, together = context.Queue(), context.Barrier(4)
    processes = [context.Process(target=_start, args=(uri, together, ended)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [ended.get(timeout=300) for _ in processes] == ["ok"] * 4
    for process in processes:
        process.join()
