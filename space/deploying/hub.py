"""The Hub's client: time limits, retries, and every error as one line with what to do next."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, get_session, hf_hub_url, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RemoteEntryNotFoundError
from huggingface_hub.utils._http import default_client_factory, hf_raise_for_status

logger = logging.getLogger("space")
T = TypeVar("T")
_SECONDS = 60.0  # one wait for the network; the client itself sets no limit
_PAUSES = (1, 2, 4, 8)  # seconds between attempts
_TRANSIENT = {408, 409, 412, 425, 429}
_UNPAID = ("Docker Spaces on free hardware need a paid plan (PRO, Team or Enterprise). Instead: --space of an "
           "organisation that has one; `docker build space` and any host of containers; Procfile and "
           "requirements.txt on a host of apps; `make serve` on a machine of your own")
_REMEDIES = {
    401: "HF_TOKEN is wrong, has expired, or may not see it; create a new one",
    402: _UNPAID,
    403: "HF_TOKEN may not do this; give it write access there",
    404: "correct the name, or give HF_TOKEN access to it",
}
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")
_USERINFO = re.compile(r"(?<=://)[^\s/@'\"]+@")


def check_name(flag: str, name: str | None) -> None:
    """Raise BadUsage for a repository that is not OWNER/NAME: without an owner the Hub would take the token's."""
    if name is not None and not _REPOSITORY.fullmatch(name):
        raise BadUsage(f"{flag} {name}: expected OWNER/NAME, such as acme/chat")


def connect() -> HfApi:
    """The client, with the token of HF_TOKEN; raises BadUsage without one."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise BadUsage("HF_TOKEN: not set; create a token with write access (huggingface.co/settings/tokens), then "
                       "`export HF_TOKEN=hf_...`")
    set_client_factory(_client)
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or None, token=token)


def fetched(api: HfApi, name: str, path: str, revision: str, kind: str) -> str | None:
    """A text file of a repository, None if it has no such file; raises what the client raises."""
    url = hf_hub_url(name, path, repo_type=kind, revision=revision, endpoint=api.endpoint)
    response = get_session().get(url, headers={"Authorization": f"Bearer {api.token}"})
    try:
        hf_raise_for_status(response)
    except RemoteEntryNotFoundError:
        return None
    return response.text


def persist(action: Callable[[], T], subject: str) -> T:
    """Repeat a whole action while the Hub is busy; raises HubFailed, or HubUnavailable after the last attempt.

    The action has to look first and do only what is missing, so that a lost reply does no harm.
    """
    for pause in _PAUSES:
        try:
            with hub_errors(subject):
                return action()
        except HubUnavailable as error:
            logger.warning("%s; again in %d s", error, pause)
            time.sleep(pause)
    with hub_errors(subject):
        return action()


@contextmanager
def hub_errors(subject: str) -> Iterator[None]:
    """Turn what the client raises into HubFailed, or HubUnavailable if it may pass."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _explained(error, subject) from error
    except OfflineModeIsEnabled as error:
        raise BadUsage("HF_HUB_OFFLINE is set, so the Hub cannot be reached; unset it") from error
    except (HFValidationError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise BadUsage(f"{subject}: {clean(str(error))}; correct --space or HF_ENDPOINT") from error
    except (httpx2.HTTPError, ConnectionError, TimeoutError, json.JSONDecodeError) as error:
        raise HubUnavailable(f"{subject}: {clean(f'{type(error).__name__}: {error}')}; no answer of the Hub") from error
    except (ValueError, RuntimeError) as error:  # what the client itself finds wrong, a README's metadata say
        raise HubFailed(f"{subject}: {clean(str(error))}") from error


def _explained(error: HfHubHTTPError, subject: str) -> "DeployError":
    status = error.response.status_code
    line = f"{subject}: {status} {clean(error.server_message or error.response.reason_phrase)[:300].rstrip('.')}"
    if status in _TRANSIENT or status >= httpx2.codes.INTERNAL_SERVER_ERROR:
        return HubUnavailable(line)
    return HubFailed(f"{line}; {_REMEDIES.get(status, 'correct it and run it again')}")


def _client() -> httpx2.Client:
    made = default_client_factory()
    made.event_hooks["request"].append(_bound)
    return made


def _bound(request: httpx2.Request) -> None:
    own = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {kind: own.get(kind) or _SECONDS for kind in ("connect", "read", "write", "pool")}


class DeployError(Exception):
    """The deployment cannot go on; the text says what happened and what to do next."""

    code = 1


class BadUsage(DeployError):
    """A flag, a setting or a token is missing or wrong."""

    code = 2


class BadInput(DeployError):
    """The folder is not fit to be deployed."""

    code = 3


class Unsound(DeployError):
    """The bundle, or the version that answers, is not what was validated."""

    code = 5


class HubFailed(DeployError):
    """The Hub failed or refused, or the Space did not come up."""

    code = 6


class NotAllowed(DeployError):
    """The Space holds somebody else's files, and nobody agreed to their deletion."""

    code = 7


class Later(DeployError):
    """Somebody else was faster: run it again."""

    code = 75


class HubUnavailable(Later):
    """The Hub is busy or out of reach: it may pass by itself."""


def clean(text: str) -> str:
    """Text fit to be shown: one line, without a token, a user's name in an address or a signed query."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        secret = os.environ.get(name, "").strip()
        text = text.replace(secret, "***") if secret else text
    return _QUERY.sub(r"\1", _USERINFO.sub("***@", _TOKEN.sub("***", " ".join(text.split()))))
