"""An HTTP proxy between the real MLflow client and a real server, which fails at one call.

It can also stand where DagsHub stands: below a path, behind a user name and password (which its API tells to whom
has the token), without some endpoints.
"""

import base64
import contextlib
import http.client
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.message import Message
from enum import StrEnum
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from tests.fakes.local_http import Handler, LocalServer

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}


class Kind(StrEnum):
    """What happens at the call; all but LOST lasts from then on."""

    REFUSED = "refused"  # the server is killed before it hears of the call
    KILLED = "killed"    # the server is killed after the effect, before the reply
    LOST = "lost"        # the reply is dropped, once
    HUNG = "hung"        # connections are taken and nothing is answered


@dataclass(frozen=True)
class Fault:
    """Fails at the occurrence-th call of an endpoint; both as Call names them."""

    kind: Kind
    endpoint: str
    occurrence: int = 1


@dataclass(frozen=True)
class Call:
    """A request; endpoint is `POST runs/create`, with artifact paths cut to their last part."""

    method: str
    path: str

    @property
    def endpoint(self) -> str:
        path = urlsplit(self.path).path
        _, artifacts, name = path.partition("/mlflow-artifacts/artifacts")
        if artifacts:
            return f"{self.method} artifacts/{unquote(name).rpartition('/')[2]}".rstrip("/")
        return f"{self.method} {path.rpartition('/mlflow/')[2]}"


class _Dead(Exception):
    """No reply is to be sent."""


@dataclass(frozen=True)
class SqliteServer:
    """The address of a server, and the file that it works on."""

    url: str
    database: Path

    def put_back(self, kept: Path) -> None:
        """Replace the content of the database, under the server's feet, by that of another file."""
        with sqlite3.connect(kept) as source, sqlite3.connect(self.database) as live:
            source.backup(live)

    def set_aside(self, kept: Path) -> None:
        """Keep the content of the database in a file."""
        with sqlite3.connect(self.database) as live, sqlite3.connect(kept) as copy:
            live.backup(copy)


@dataclass
class MlflowProxy(LocalServer):
    """A context manager; `url` is the tracking address of what it forwards to `upstream`.

    user and password are demanded of every request where they are given, missing endpoints answer 404, and `instead`
    may give (status, body) in the server's place.
    """

    upstream: str
    fault: Fault | None = None
    prefix: str = ""
    login: tuple[str, str] | None = None
    missing: Sequence[str] = ()
    instead: Callable[[Call, bytes], tuple[int, bytes] | None] = lambda _call, _body: None
    calls: list[Call] = field(default_factory=list)
    struck_at: float | None = None
    refused_logins: int = 0

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        self._dead = self._hung = False
        self._over = threading.Event()
        super().__enter__()
        self.url += self.prefix
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.kill()

    def kill(self) -> None:
        """Refuse connections from now on, and cut the open ones."""
        with self._lock:
            dead, self._dead = self._dead, True
        if not dead:
            super().__exit__()
        for connection in self.connections.copy():
            with contextlib.suppress(OSError):  # gone already
                connection.shutdown(socket.SHUT_RDWR)

    def reply(self, call: Call, headers: Message, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the client gets; raises _Dead where that is nothing."""
        with self._lock:
            self.calls.append(call)
            kind = self._strikes(call)
            self._hung |= kind is Kind.HUNG
            hung = self._hung
        if hung:
            self._over.wait()
            raise _Dead
        if kind is Kind.REFUSED:
            self.kill()
            raise _Dead
        if refusal := self._refusal(call, headers, body):
            return refusal[0], [("Content-Type", "application/json")], refusal[1]
        answered = self._forwarded(call, headers, body)
        if kind is Kind.KILLED:
            self.kill()
        if kind is not None:
            raise _Dead
        return answered

    def _strikes(self, call: Call) -> Kind | None:
        fault = self.fault
        if fault is None or self.struck_at is not None or call.endpoint != fault.endpoint:
            return None
        if sum(known.endpoint == fault.endpoint for known in self.calls) < fault.occurrence:
            return None
        self.struck_at = time.monotonic()
        return fault.kind

    def _refusal(self, call: Call, headers: Message, body: bytes) -> tuple[int, bytes] | None:
        if self.login and call.path == "/api/v1/user":
            known = headers["Authorization"] == f"Bearer {self.login[1]}"
            who = {"id": 1, "login": self.login[0], "full_name": "", "username": self.login[0]}
            return (200, json.dumps(who).encode()) if known else (401, b"{}")
        if not call.path.startswith(f"{self.prefix}/"):
            return 404, b"no such repository"
        if self.login:
            basic = base64.b64encode(":".join(self.login).encode()).decode()
            if headers["Authorization"] not in (f"Basic {basic}", f"Bearer {self.login[1]}"):
                self.refused_logins += 1
                return 401, b"You are not authenticated."
        if any(call.endpoint.partition(" ")[2].startswith(name) for name in self.missing):
            return 404, b"404 page not found"
        return self.instead(call, body)

    def _forwarded(self, call: Call, headers: Message, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        host = urlsplit(self.upstream).netloc
        sent = {name: value for name, value in headers.items()
                if name.lower() not in ("host", "authorization", "connection", "transfer-encoding")}
        connection = http.client.HTTPConnection(host, timeout=120)
        try:
            connection.request(call.method, call.path.removeprefix(self.prefix), body, {**sent, "Host": host})
            found = connection.getresponse()
            return found.status, found.getheaders(), found.read()
        finally:
            connection.close()


class _Handler(Handler):
    protocol_version = "HTTP/1.1"
    owner: MlflowProxy

    def setup(self) -> None:
        self.owner.connections.add(self.request)
        super().setup()

    def finish(self) -> None:
        super().finish()
        self.owner.connections.discard(self.request)

    def _any(self) -> None:
        chunked = self.headers.get("Transfer-Encoding") == "chunked"  # an empty file is sent so
        body = self._chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            status, headers, text = self.owner.reply(Call(self.command, self.path), self.headers, body)
        except _Dead:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815 - the library's names


MlflowProxy.handler = _Handler
