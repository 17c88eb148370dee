"""Which MLflow store is meant, and an embedded one that survives several first starts at once."""

import fcntl
import importlib.util
import os
import sqlite3
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from src.errors import InvalidParams, Undecided

SQLITE = "sqlite:///"
_POSTGRES_DRIVERS = {"postgresql": "psycopg", "postgresql+psycopg": "psycopg", "postgresql+psycopg2": "psycopg2"}


def tracking_uri(configured: str) -> str:
    """The store's address: MLFLOW_TRACKING_URI, else the configured one.

    Raises InvalidParams for an address that carries a password, a file store (MLflow 3 has retired it), an unknown
    scheme, or a PostgreSQL driver that is not installed.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or configured
    parts = urlsplit(uri)
    if "@" in parts.netloc and parts.scheme in ("http", "https"):
        raise InvalidParams(
            f"mlflow.tracking_uri: {parts.scheme}://***@{parts.hostname} carries credentials; "
            "put them in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if parts.password is not None:  # the address is in every record
        raise InvalidParams(f"mlflow.tracking_uri: {parts.scheme}://{parts.username}:***@{parts.hostname} carries a "
                            "password; put it in PGPASSWORD or ~/.pgpass")
    if parts.scheme in ("", "file"):
        raise InvalidParams(f"mlflow.tracking_uri: {uri} is a file store, which MLflow 3 retired; "
                            f"use {SQLITE}mlflow.db")
    driver = _POSTGRES_DRIVERS.get(parts.scheme)
    if driver and importlib.util.find_spec(driver) is None:
        raise InvalidParams(f"mlflow.tracking_uri: {parts.scheme} needs the driver {driver}; pip install {driver}")
    if not driver and parts.scheme not in ("http", "https", "sqlite"):
        raise InvalidParams(f"mlflow.tracking_uri: scheme {parts.scheme!r} is not known; use http(s), sqlite "
                            "or postgresql")
    return uri


def check_lasting(configured: str) -> None:
    """Raise InvalidParams for an sqlite file: on a CI machine it is thrown away, and each model would be the first."""
    uri = tracking_uri(configured)
    if uri.startswith("sqlite"):
        raise InvalidParams(f"mlflow.tracking_uri: {uri} is a file of this CI machine, which keeps no history; "
                            "set MLFLOW_TRACKING_URI to a server, or pass --skip-hf-push")


def prepare(uri: str) -> None:
    """Make sure that an sqlite store exists with MLflow's current tables; other stores are left alone.

    MLflow alone creates the tables in place: started eight times at once it leaves the file unusable. Here one
    process migrates a temporary file under a lock and renames it into place. Raises Undecided for a file that is
    read-only or not a database.
    """
    if not uri.startswith(SQLITE):
        return
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if not path.parent.is_dir():
        raise Undecided(f"{path}: its folder does not exist; create it, or correct mlflow.tracking_uri")
    with _locked(path.with_name(path.name + ".lock")):
        if not path.exists() or path.stat().st_size == 0:
            _create(path)
    _check(path)


class _locked:  # noqa: N801 - reads as a verb: with _locked(path)
    """An exclusive lock on a file, given back by the kernel when the process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise Undecided(f"{self._path}: {error.strerror}; the MLflow store's folder must be writable") from None
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def _create(path: Path) -> None:
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        engine = create_engine(f"{SQLITE}{temporary}")
        _initialize_tables(engine)
        engine.dispose()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise Undecided(f"{path}: is read-only; make it writable, or point mlflow.tracking_uri elsewhere")
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        versions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        connection.close()
    except sqlite3.DatabaseError as error:
        raise Undecided(f"{path}: not a usable MLflow database ({error}); restore it from a backup") from None
    if len(versions) != 1:
        raise Undecided(f"{path}: half-migrated; run `mlflow db upgrade {SQLITE}{path}` on a copy")
