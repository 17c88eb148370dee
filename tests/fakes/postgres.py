"""A PostgreSQL of its own for a test, and `mlflow server` over it, as a real deployment has them.

With PostgresCluster() as cluster, MlflowServer(cluster.migrated("mlflow"), artifacts) as server: ... server.url
"""

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
import pytest

from tests.fakes.local_http import free_port

_INITDB = max(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=shutil.which("initdb") or "")
_USER: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
_OPTIONS = ("-F", "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200", "-c", "shared_buffers=32MB",
            "-c", "autovacuum=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off")
# Runs a command until it ends or, since this process is gone, nobody holds the other end of standard input.
_WATCH = """exec 3<&0; end=$1; shift; "$@" </dev/null 3<&- & child=$!
(read -r _ <&3; [ $end = INT ] && kill -INT $child || kill -KILL 0) &
wait $child"""
_WATCHED = ("sh", "-c", _WATCH, "sh")
_ROOT = Path(__file__).parents[2]
_START_SECONDS = 90

needs_postgres = pytest.mark.skipif(not _INITDB, reason="initdb is missing: apt-get install postgresql (.ci/run does)")


class PostgresCluster:
    """A PostgreSQL that keeps nothing: no fsync, no password, a folder of its own that goes with it."""

    def __enter__(self) -> Self:
        # Not below pytest's folder, which only root may enter.
        self._folder = Path(tempfile.mkdtemp(prefix="champion-postgres-"))
        self._port = free_port()
        data, bin_folder = self._folder / "data", Path(_INITDB).parent
        if _USER:
            shutil.chown(self._folder, _USER["user"], _USER["group"])
        _run([_INITDB, "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync", "--locale=C"])
        with (self._folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*_WATCHED, "INT", bin_folder / "postgres", "-D", data, "-p", str(self._port), "-k", self._folder,
                 *_OPTIONS],
                stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self._folder, start_new_session=True, **_USER)
        try:
            _wait(self.process, self._answers, self._folder / "log")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None,
                 _trace: TracebackType | None) -> None:
        _end(self.process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """Its address for SQLAlchemy."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self._port}/{database}"

    def create(self, database: str, *, template: str = "template0") -> str:
        """A database, a copy of another one; whatever has its name, or uses the template, is thrown out first."""
        self.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
        self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", template)
        self.execute(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.url(database)

    def migrated(self, database: str) -> str:
        """A database with MLflow's tables and nothing in them, which takes seconds the first time only."""
        if not self.execute("SELECT 1 FROM pg_database WHERE datname = 'migrated'"):
            _migrate(self.create("migrated"))
        return self.create(database, template="migrated")

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement as its superuser; returns the rows."""
        with psycopg.connect(f"host=127.0.0.1 port={self._port} user=postgres dbname=postgres", autocommit=True,
                             connect_timeout=5) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


class MlflowServer:
    """`mlflow server` with its workers, healthy on entry and killed with its process group at exit.

    With auth=(user, password) every request needs them (HTTP Basic, as DagsHub's proxy does; MLflow's own basic-auth
    application needs a package that is not among ours); with prefix="/x" it answers below that path.
    """

    def __init__(self, store: str, artifacts: Path, *, workers: int = 2, prefix: str = "",
                 auth: tuple[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}{prefix}"
        self.log = artifacts.parent / f"mlflow-server-{self.port}.log"
        self._store, self._artifacts, self._workers, self._prefix = store, artifacts, workers, prefix
        self._auth = auth

    def __enter__(self) -> Self:
        self._artifacts.mkdir(parents=True, exist_ok=True)
        self._plugins = Path(tempfile.mkdtemp(prefix="champion-mlflow-"))
        command = [*_WATCHED, "KILL", sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self._store,
                   "--artifacts-destination", str(self._artifacts), "--host", "127.0.0.1", "--port", str(self.port),
                   "--workers", str(self._workers)]
        command += ["--static-prefix", self._prefix] if self._prefix else []
        command += ["--app-name", self._guard()] if self._auth else []
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log,
                                            cwd=self._artifacts.parent, env=self._environment(),
                                            start_new_session=True)
        try:
            _wait(self.process, self._answers, self.log)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None,
                 _trace: TracebackType | None) -> None:
        self.kill()
        shutil.rmtree(self._plugins, ignore_errors=True)
        if kind is not None and self.log.exists():
            sys.stderr.write(f"--- {self.log}\n{self.log.read_text(errors='replace')[-4000:]}\n")

    def kill(self) -> None:
        """SIGKILL to the server and all its workers, as when the machine goes down."""
        _end(self.process)

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self._plugins), str(_ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "HF_"))}
        return {**ours, "PYTHONPATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "OMP_NUM_THREADS": "1",
                "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TEST_AUTH": ":".join(self._auth or ())}

    def _guard(self) -> str:
        """Announce tests.fakes.guarded_mlflow to `mlflow server` as an installed plugin; returns its name."""
        metadata = self._plugins / "guarded-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: guarded\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text("[mlflow.app]\nguarded = tests.fakes.guarded_mlflow:app\n")
        return "guarded"

    def _answers(self) -> bool:
        request = urllib.request.Request(f"{self.url}/api/2.0/mlflow/experiments/get?experiment_id=0")
        if self._auth:
            request.add_header("Authorization", "Basic " + base64.b64encode(":".join(self._auth).encode()).decode())
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False


def _migrate(url: str) -> None:
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    engine = create_engine(url)
    _initialize_tables(engine)
    engine.dispose()


def _run(command: list[Any]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, **_USER)
    assert done.returncode == 0, done.stdout + done.stderr


def _wait(process: "subprocess.Popen[bytes]", answers: Any, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while not answers():
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"did not start (exit {process.poll()}):\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.1)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a watched process, and all that it started."""
    assert process.stdin
    process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
