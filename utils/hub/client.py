"""The Hub's client: its address, its time limits, and what its errors mean."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx2
from huggingface_hub import errors, set_client_factory
from huggingface_hub.utils._http import default_client_factory, hf_raise_for_status

from src.core.errors import HubError
from utils.process import full_disk, redacted

_XET_ANSWERED = re.compile(r"HTTP status \w+ error \((?P<status>\d+)[^)]*\)")
_NO_SUCH_ROUTE = {"404", "405", "501"}
_TRANSIENT = {408, 409, 412, 425, 429}
_REMEDIES = {
    401: "the token is wrong or has expired; make a new one at {endpoint}/settings/tokens and set HF_TOKEN",
    402: "the account's plan does not allow it; see {endpoint}/settings/billing",
    403: "the token may not do this; give it write access to {subject} at {endpoint}/settings/tokens",
    404: "correct the name, or give the token access to it",
}


class HubBusy(HubError):
    """A temporary error: try again after `retry_after` seconds (None if the server did not say)."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, else huggingface.co. (The client itself reads it only when it is imported.)"""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"


@contextmanager
def time_limit(seconds: float, request_seconds: float, *, client_waits: float,
               heard: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Limit the time of everything that the client does in this block, and of every single wait for the network.

    The client's own timeouts are off, and some of its calls pass `timeout=None`; hooks override both. A request
    after the limit, or a body that is still arriving then, raises HubError. The client repeats failed requests and
    obeys even a Retry-After of an hour. Here a Retry-After of client_waits seconds or more raises at once. With
    client_waits=0 every temporary error does. `heard` is called for every request and response.
    """
    _install()
    _LIMITS.append(_Limit(time.monotonic() + seconds, seconds, request_seconds, client_waits, heard))
    try:
        yield
    finally:
        _LIMITS.pop()


@contextmanager
def hub_errors(subject: str) -> Iterator[None]:
    """Turn what the client raises in this block into HubError, or HubBusy if it is temporary; one line, no token."""
    try:
        yield
    except (errors.HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, RuntimeError) as error:
        if full := full_disk(error):  # of this machine
            raise full from error
        raise explained(error, subject) from error


def explained(error: BaseException, subject: str) -> HubError:
    """The HubError or HubBusy for an exception of the client."""
    where = f"{endpoint()}: {subject}"
    if isinstance(error, HubError):
        return error
    # An upload thread's, or a cache's.
    if isinstance(error, RuntimeError | errors.LocalEntryNotFoundError) and error.__cause__:
        return explained(error.__cause__, subject)
    if isinstance(error, errors.HfHubHTTPError):
        return _explained_status(error, subject, where)
    line = one_line(f"{type(error).__name__}: {error}").rstrip(".")
    if isinstance(error, ConnectionError) and (answered := _XET_ANSWERED.search(line)):  # hf_xet has no other class
        absent = answered["status"] in _NO_SUCH_ROUTE and "/xet-write-token/" in line
        return HubBusy(f"{where}: this Hub does not offer Xet" if absent else f"{where}: Xet answered {answered[0]}")
    for kinds, explanation in _EXPLANATIONS:
        if isinstance(error, kinds):
            return explanation(f"{where}: {line}")
    return HubError(f"{where}: {line}; correct it and run it again")


_EXPLANATIONS: tuple[tuple[Any, Callable[[str], HubError]], ...] = (  # the first that fits
    (errors.OfflineModeIsEnabled, lambda line: HubError(f"{line}; unset HF_HUB_OFFLINE")),
    ((httpx2.UnsupportedProtocol, httpx2.InvalidURL), lambda line: HubError(f"{line}; correct HF_ENDPOINT")),
    ((httpx2.HTTPError, ConnectionError, TimeoutError),
     lambda line: HubBusy(f"{line}; no answer: check the network, a proxy and HF_ENDPOINT")),
    (json.JSONDecodeError, lambda line: HubBusy(f"{line}; the answer is no JSON: is that a Hub, or a proxy's page?")),
)


def one_line(text: str) -> str:
    """A service's message for the log: one line, at most 300 characters, no token and no signed address."""
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1", " ".join(redacted(text).split()))[:300]


def _named_pause(response: httpx2.Response) -> float | None:
    after = response.headers.get("Retry-After", "").strip()
    return float(after) if after.isdigit() else None


def _is_transient(status: int) -> bool:
    return status in _TRANSIENT or status >= httpx2.codes.INTERNAL_SERVER_ERROR


def _explained_status(error: errors.HfHubHTTPError, subject: str, where: str) -> HubError:
    status = error.response.status_code
    line = f"{where}: {status} {one_line(error.server_message or error.response.reason_phrase).rstrip('.')}"
    if _is_transient(status):
        return HubBusy(line, _named_pause(error.response))
    if isinstance(error, errors.RevisionNotFoundError):  # another deployer has finished with the branch and deleted it
        return HubBusy(line)
    remedy = _REMEDIES.get(status, "correct it and run it again")
    if isinstance(error, errors.RepositoryNotFoundError):  # 401 stands for "no such repository" too
        remedy = "correct the name, or set HF_TOKEN to a valid token with access to it"
    if isinstance(error, errors.GatedRepoError):
        remedy = "accept its conditions on {endpoint}/{subject}, and set HF_TOKEN to a token of that account"
    return HubError(f"{line}; {remedy.format(endpoint=endpoint(), subject=subject)}")


@dataclass(frozen=True)
class _Limit:
    end: float
    seconds: float
    request_seconds: float
    client_waits: float
    heard: Callable[[], None]

    def left(self) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise HubError(f"{endpoint()}: not done within {self.seconds:g} s; check the network, then run it again")
        return left


_LIMITS: list[_Limit] = []  # the innermost counts; client and worker threads are shared by the whole process


@cache
def _install() -> None:
    set_client_factory(_client)


def _client() -> httpx2.Client:
    made = default_client_factory()
    made.event_hooks = {"request": [*made.event_hooks["request"], _bound], "response": [_watch]}
    return made


def _bound(request: httpx2.Request) -> None:
    if not _LIMITS:
        return
    limit = _LIMITS[-1]
    limit.heard()
    seconds = min(limit.left(), limit.request_seconds)
    own = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        kind: min(own.get(kind) or seconds, seconds) for kind in ("connect", "read", "write", "pool")}


def _watch(response: httpx2.Response) -> None:
    if not _LIMITS:
        return
    limit = _LIMITS[-1]
    limit.heard()
    if isinstance(response.stream, httpx2.SyncByteStream):
        response.stream = _Watched(response.stream, limit)
    if _is_transient(response.status_code) and (_named_pause(response) or 0.0) >= limit.client_waits:
        response.read()
        hf_raise_for_status(response)


class _Watched(httpx2.SyncByteStream):
    """A body that stops at the time limit."""

    def __init__(self, stream: httpx2.SyncByteStream, limit: _Limit) -> None:
        self._stream, self._limit = stream, limit

    def __iter__(self) -> Iterator[bytes]:
        for block in self._stream:
            self._limit.left()
            yield block

    def close(self) -> None:
        self._stream.close()
