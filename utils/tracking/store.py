"""The MLflow store: its address, an sqlite file that several processes may create at once, and the DagsHub login."""

import fcntl
import importlib.util
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from src.core.errors import InvalidParams, RunAgain, Undecided
from utils.process import full_disk

logger = logging.getLogger(__name__)
SQLITE = "sqlite:///"
_POSTGRES_DRIVERS = {"postgresql": "psycopg", "postgresql+psycopg": "psycopg", "postgresql+psycopg2": "psycopg2"}
_TOKENS = ("DAGSHUB_TOKEN", "DAGSHUB_USER_TOKEN")
_CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def tracking_uri(configured: str) -> str:
    """The store's address: MLFLOW_TRACKING_URI, else the configured one.

    Raises InvalidParams for an address that carries a password, a file store (MLflow 3 has retired it), an unknown
    scheme, or a PostgreSQL driver that is not installed.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or configured
    parts = urlsplit(uri)
    if "@" in parts.netloc and parts.scheme in ("http", "https"):
        raise InvalidParams(f"mlflow.tracking_uri: {parts.scheme}://***@{parts.hostname} carries credentials; "
                            "put them in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    if parts.password is not None:  # the address is in every record
        raise InvalidParams(f"mlflow.tracking_uri: {parts.scheme}://{parts.username}:***@{parts.hostname} carries a "
                            "password; put it in PGPASSWORD or ~/.pgpass")
    if parts.scheme in ("", "file"):
        raise InvalidParams(f"mlflow.tracking_uri: {uri} is a file store, which MLflow 3 retired; use "
                            f"{SQLITE}mlflow.db")
    driver = _POSTGRES_DRIVERS.get(parts.scheme)
    if driver and importlib.util.find_spec(driver) is None:
        raise InvalidParams(f"mlflow.tracking_uri: {parts.scheme} needs the driver {driver}; pip install {driver}")
    if not driver and parts.scheme not in ("http", "https", "sqlite"):
        raise InvalidParams(f"mlflow.tracking_uri: scheme {parts.scheme!r} is not known; use http(s), sqlite "
                            "or postgresql")
    return uri


def check_lasting(configured: str) -> None:
    """Raise InvalidParams for an sqlite file: a CI machine is thrown away, so every model would be the first one."""
    uri = tracking_uri(configured)
    if uri.startswith("sqlite"):
        raise InvalidParams(f"mlflow.tracking_uri: {uri} is a file of this CI machine, which keeps no history; "
                            "set MLFLOW_TRACKING_URI to a server, or pass --skip-hf-push")


def is_absent(uri: str) -> bool:
    """True if an address names an sqlite file that does not exist yet."""
    path = _path(uri)
    return uri.startswith(SQLITE) and path.parent.is_dir() and not (path.exists() and path.stat().st_size)


def _path(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def prepare(uri: str, *, create: bool = True) -> None:
    """Make sure that an sqlite store exists with MLflow's current tables; other stores are left alone.

    MLflow creates the tables in place; started eight times at once, it leaves the file unusable. Here one
    process migrates a temporary file under a lock and renames it into place. With create=False no file is made. Raises
    Undecided for a file that is read-only or not a database, RunAgain for one that another process keeps locked,
    IntegrityError for a full disk.
    """
    if not uri.startswith(SQLITE):
        return
    path = _path(uri)
    if not path.parent.is_dir():
        raise Undecided(f"{path}: its folder does not exist; create it, or correct mlflow.tracking_uri")
    if create:
        with _locked(path.with_name(path.name + ".lock")):
            if is_absent(uri):
                _create(path)
    _check(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it when the process dies."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise full_disk(error) or Undecided(
            f"{path}: {error.strerror}; the MLflow store's folder must be writable") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _create(path: Path) -> None:
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        engine = create_engine(f"{SQLITE}{temporary}")
        _initialize_tables(engine)
        engine.dispose()
        temporary.replace(path)
    except SQLAlchemyError as error:
        raise full_disk(error, path) or Undecided(f"{path}: cannot be made: {str(error).splitlines()[0]:.200}; look at "
                                                  "its disk") from error
    finally:
        temporary.unlink(missing_ok=True)


def _check(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise Undecided(f"{path}: is read-only; make it writable, or point mlflow.tracking_uri elsewhere")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        versions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        connection.close()
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise RunAgain(f"{path}: locked by another process; run it again") from None
        raise Undecided(f"{path}: not a usable MLflow database ({error}); restore it from a backup") from None
    if len(versions) != 1:
        raise Undecided(f"{path}: half-migrated; run `mlflow db upgrade {SQLITE}{path}` on a copy")


def log_in(tracking_uri: str) -> None:
    """Set MLflow's user name and password if the address is DagsHub's and only a DagsHub token is set.

    A user name or password for MLflow in the environment wins. Raises as dagshub_login.
    """
    if is_dagshub(tracking_uri) and not any(map(os.environ.get, _CREDENTIALS)) and (login := dagshub_login()):
        os.environ[_CREDENTIALS[0]], os.environ[_CREDENTIALS[1]] = login
        logger.info("MLflow at %s: as %s, by the DagsHub token", host(), login[0])


def dagshub_login() -> tuple[str, str] | None:
    """User name and token for DagsHub, None if no token is set.

    The token is DAGSHUB_TOKEN, else DAGSHUB_USER_TOKEN; the user name is DAGSHUB_USERNAME, else the one that DagsHub
    knows for the token. Raises Undecided if DagsHub does not know the token or does not answer.
    """
    found = ((name, os.environ.get(name, "").strip()) for name in _TOKENS)
    variable, token = next((each for each in found if each[1]), ("", ""))
    if not token:
        return None
    return os.environ.get("DAGSHUB_USERNAME", "").strip() or _user(token, variable), token


def host() -> str:
    """DagsHub's address: DAGSHUB_CLIENT_HOST, as for its own client, else dagshub.com."""
    return os.environ.get("DAGSHUB_CLIENT_HOST", "").strip().rstrip("/") or "https://dagshub.com"


def is_dagshub(url: str) -> bool:
    """True for an address of DagsHub."""
    return urlsplit(url).netloc == urlsplit(host()).netloc


def _user(token: str, variable: str) -> str:
    # The request of dagshub.init, which would also create repositories and open a browser window.
    import dacite  # slow imports that only DagsHub needs
    import httpx
    from dagshub.common import config
    from dagshub.common.api import UserAPI
    from dagshub.common.api.user import UserNotFoundError

    config.http_timeout = 10
    try:
        return str(UserAPI.get_user_from_token(token, host=host()).username)
    except (RuntimeError, UserNotFoundError, httpx.HTTPError, dacite.DaciteError, ValueError) as error:
        raise Undecided(f"DagsHub at {host()}: {variable} could not be used ({type(error).__name__}); check that it "
                        f"answers, or make a token at {host()}/user/settings/tokens") from None
