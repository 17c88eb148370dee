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
from collections.abc import Sequence
from pathlib import Path
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


class _Watched:
    """A server that ends with this process, and at exit, with all that it started; its words are in `log`."""

    log: Path

    def _start(self, end: str, command: Sequence[object], **options: Any) -> None:
        """Start it, and wait until it answers; `end` is the signal that it gets when this process is gone."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([*_WATCHED, end, *map(str, command)], stdin=subprocess.PIPE, stdout=log,
                                             stderr=log, cwd=self.log.parent, start_new_session=True, **options)
        until = time.monotonic() + _START_SECONDS
        try:
            while not self._answers():
                running = self._process.poll() is None and time.monotonic() < until
                assert running, f"did not start:\n{self.log.read_text(errors='replace')[-4000:]}"
                time.sleep(0.1)
        except BaseException:
            self.__exit__(None)
            raise

    def _answers(self) -> bool:
        raise NotImplementedError

    def __exit__(self, *_: object) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        """End it and all that it started, as when the machine goes down."""
        assert self._process.stdin
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class PostgresCluster(_Watched):
    """A PostgreSQL that keeps nothing: no fsync, no password, a folder of its own that goes with it."""

    def __enter__(self) -> Self:
        # Not below pytest's folder, which only root may enter.
        self._folder = Path(tempfile.mkdtemp(prefix="champion-postgres-"))
        self._port, self.log = free_port(), self._folder / "log"
        data, programs = self._folder / "data", Path(_INITDB).parent
        if _USER:
            shutil.chown(self._folder, _USER["user"], _USER["group"])
        subprocess.run([_INITDB, "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync",
                        "--locale=C"], stdout=subprocess.DEVNULL, cwd="/", check=True, **_USER)
        self._start("INT", [programs / "postgres", "-D", data, "-p", self._port, "-k", self._folder, *_OPTIONS],
                    **_USER)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
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


class MlflowServer(_Watched):
    """`mlflow server` with its workers, healthy on entry and killed with its process group at exit.

    With auth=(user, password) every request needs them (HTTP Basic, as DagsHub's proxy does; MLflow's own basic-auth
    application needs a package that is not among ours); with prefix="/x" it answers below that path; with served=False
    it tells clients to keep artifacts at a path of their own disk.
    """

    def __init__(self, store: str, artifacts: Path, *, workers: int = 2, prefix: str = "",
                 auth: tuple[str, str] | None = None, served: bool = True) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}{prefix}"
        self.log = artifacts.parent / f"mlflow-server-{self.port}.log"
        self._store, self._artifacts, self._workers, self._prefix = store, artifacts, workers, prefix
        self._auth, self._served = auth, served

    def __enter__(self) -> Self:
        self._artifacts.mkdir(parents=True, exist_ok=True)
        self._plugins = Path(tempfile.mkdtemp(prefix="champion-mlflow-"))
        prefix = ["--static-prefix", self._prefix] if self._prefix else []
        guard = ["--app-name", self._guard()] if self._auth else []
        self._start("KILL", [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self._store,
            *(["--artifacts-destination"] if self._served else ["--no-serve-artifacts", "--default-artifact-root"]),
            self._artifacts, "--host", "127.0.0.1", "--port", self.port, "--workers", self._workers, *prefix, *guard,
        ], env=self._environment())
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        shutil.rmtree(self._plugins, ignore_errors=True)
        if error[0] and self.log.exists():
            sys.stderr.write(f"--- {self.log}\n{self.log.read_text(errors='replace')[-4000:]}\n")

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
