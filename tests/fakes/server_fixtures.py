"""One `mlflow server` on sqlite for all tests that want a real one; each begins by putting the database back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.mlflow_proxy import SqliteServer
from tests.fakes.postgres import MlflowServer


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Iterator[SqliteServer]:
    root = tmp_path_factory.mktemp("mlflow-server")
    database = root / "server.db"
    database.write_bytes(migrated_store.read_bytes())
    with MlflowServer(f"sqlite:///{database}", root / "artifacts", workers=1) as server:
        yield SqliteServer(server.url, database)
