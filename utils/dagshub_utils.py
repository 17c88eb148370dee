"""DagsHub's MLflow: its user name and password from DAGSHUB_USER_TOKEN."""

import logging
import os
from urllib.parse import urlsplit

from src.errors import Undecided

logger = logging.getLogger(__name__)

_TOKEN = "DAGSHUB_USER_TOKEN"  # noqa: S105 - its name
_CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_SECONDS = 10


def log_in(tracking_uri: str) -> None:
    """Set MLflow's user name and password where the address is DagsHub's and only its token is at hand.

    A user name or password in the environment wins. DAGSHUB_CLIENT_HOST names another DagsHub than dagshub.com, as
    for its own client. Raises Undecided when DagsHub does not know the token or does not answer.
    """
    token = os.environ.get(_TOKEN, "").strip()
    if not is_dagshub(tracking_uri) or not token or any(map(os.environ.get, _CREDENTIALS)):
        return
    os.environ[_CREDENTIALS[0]], os.environ[_CREDENTIALS[1]] = user(token), token
    logger.info("MLflow at %s: %s gives user name and password", host(), _TOKEN)


def host() -> str:
    """DagsHub's address: DAGSHUB_CLIENT_HOST, else dagshub.com."""
    return os.environ.get("DAGSHUB_CLIENT_HOST", "").strip().rstrip("/") or "https://dagshub.com"


def is_dagshub(url: str) -> bool:
    """Whether an address is DagsHub's."""
    return urlsplit(url).netloc == urlsplit(host()).netloc


def user(token: str) -> str:
    """Whose token it is; raises Undecided when DagsHub does not know it or does not answer.

    As dagshub.init asks, without its creating repositories and its browser window.
    """
    import dacite  # these take time to import, and are needed for DagsHub alone
    import httpx
    from dagshub.common import config
    from dagshub.common.api import UserAPI
    from dagshub.common.api.user import UserNotFoundError

    config.http_timeout = _SECONDS
    try:
        return str(UserAPI.get_user_from_token(token, host=host()).username)
    except (RuntimeError, UserNotFoundError, httpx.HTTPError, dacite.DaciteError, ValueError) as error:
        raise Undecided(f"DagsHub at {host()}: {_TOKEN} could not be used ({type(error).__name__}); check that it "
                        f"answers, or make a token at {host()}/user/settings/tokens") from None
