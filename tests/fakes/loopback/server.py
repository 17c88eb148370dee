"""The loopback hub's HTTP server and its fault rules."""

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

from ..local_http import Server
from . import writing  # noqa: F401 - registers its endpoints
from .reading import find
from .spaces import Spaces
from .store import Reply, Stop, Store

BLOCK = 1 << 20


@dataclass
class Fault:
    """One rule: the nth to (nth+times-1)th request that matches is hit.

    Before it is processed (or `after`): wait `delay` seconds, commit `intrude` as somebody else ({"repo", "kind",
    "branch", "files": {path: text}}), then answer `status`, or `reset` (RST) or `close` (FIN) the connection. With
    none of these three the true answer goes out, its body at `drip` seconds a byte.
    """

    path: str
    method: str = ".*"
    nth: int = 1
    times: int = 1
    after: bool = False
    delay: float = 0.0
    intrude: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = field(default_factory=lambda: {"error": "injected fault"})
    reset: bool = False
    close: bool = False
    drip: float = 0.0
    seen: int = 0

    def hits(self, method: str, path: str) -> bool:
        if not (re.fullmatch(self.method, method) and re.search(self.path, path)):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


class Dropped(Exception):
    """The connection is gone: there is nobody to answer."""


class LoopbackHub(Store):
    """The content with a server around it."""

    def __init__(self, root: Path, port: int = 0) -> None:
        super().__init__(root)
        self.multipart_over, self.part_size = 32_000_000, 16_000_000
        self.faults: list[Fault] = []
        self.log: list[dict[str, Any]] = []
        self.spaces = Spaces(self)
        self._server = Server(("127.0.0.1", port), type("Handler", (Request,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.02)

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.spaces.end()

    def fault(self, path: str, **rule: Any) -> Fault:
        self.faults.append(Fault(path, **rule))
        return self.faults[-1]

    def requests(self, method: str, path: str) -> list[dict[str, Any]]:
        """The logged requests whose method is this and whose path matches."""
        return [entry for entry in self.log if entry["method"] == method and re.search(path, entry["path"])]

    def received(self) -> int:
        """Bytes of data that came by plain LFS and by Xet, whole requests and broken ones."""
        return sum(entry["bytes"] for entry in list(self.log) if entry["path"].startswith(("/_lfs/", "/_cas/")))

    def hit(self, method: str, path: str) -> Fault:
        """The first rule that hits a request; all of them count it."""
        with self.lock:
            return next(iter([rule for rule in self.faults if rule.hits(method, path)]), Fault(path))


class Request(BaseHTTPRequestHandler):
    """One connection. `token`, `query` and `path` (unquoted only in the log) describe the request at hand."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    hub: LoopbackHub

    def serve(self) -> None:
        hub, parts = self.hub, urlsplit(self.path)
        self.route, self.query = parts.path, parse_qs(parts.query)
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self._left = int(self.headers.get("Content-Length") or 0)
        path = unquote(self.route)
        entry: dict[str, Any] = {"method": self.command, "path": path, "status": None, "bytes": 0}
        self._entry = entry
        if self.route == "/_log":
            return self._send(Reply(hub.log))
        hub.log.append(entry)
        rule = hub.hit(self.command, path)
        try:
            reply = self._hit(hub, rule, None) if not rule.after else None
            reply = reply or self._answer(hub)
            reply = (self._hit(hub, rule, reply) if rule.after else None) or reply
            entry["status"] = reply.status
            self._send(reply, rule.drip)
        except Dropped:
            self.close_connection = True
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815 - the base class's names

    def read(self) -> bytes:
        return b"".join(self.blocks())

    def json(self) -> Any:
        return json.loads(self.read() or b"{}")

    def blocks(self) -> Iterator[bytes]:
        """The request's body."""
        while self._left and (block := self.rfile.read(min(self._left, BLOCK))):
            self._left -= len(block)
            self._entry["bytes"] += len(block)
            yield block

    def _hit(self, hub: LoopbackHub, rule: Fault, reply: Reply | None) -> Reply | None:
        time.sleep(rule.delay)
        if rule.intrude:
            files = {path: text.encode() for path, text in rule.intrude["files"].items()}
            hub.put(rule.intrude["repo"], files, rule.intrude.get("branch", "main"), rule.intrude.get("kind", "models"))
        if rule.reset or rule.close:
            self._drop(reset=rule.reset)
        return Reply(rule.body, rule.status, rule.headers) if rule.status else reply

    def _drop(self, *, reset: bool) -> NoReturn:
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.read()  # closing over unread bytes would send RST
        for file in (self.rfile, self.wfile, self.connection):
            file.close()
        raise Dropped

    def _answer(self, hub: LoopbackHub) -> Reply:
        try:
            hub.known(self.token)
            function, groups = find(self.command, self.route)
            body = function(hub, self, **groups)
        except Stop as stop:
            return Reply(stop.body, stop.status, stop.headers)
        return body if isinstance(body, Reply) else Reply(body)

    def _send(self, reply: Reply, drip: float = 0.0) -> None:
        self.read()  # what the answer did not need of the request
        body = reply.body.encode() if isinstance(reply.body, str) else reply.body
        if not isinstance(body, bytes | tuple):
            body = json.dumps(body).encode()
        self.send_response(reply.status)
        length = body[2] if isinstance(body, tuple) else len(body)
        for name, value in {"Content-Type": "application/json", "Content-Length": length, **reply.headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        for block in () if self.command == "HEAD" else _pieces(body, 1 if drip else BLOCK):
            self.wfile.write(block)
            if drip:
                self.wfile.flush()
                time.sleep(drip)

    def log_message(self, *_: object) -> None:
        """Requests are in hub.log."""


def _pieces(body: bytes | tuple[Path, int, int], size: int) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield from (body[start : start + size] for start in range(0, len(body), size))
        return
    path, start, length = body
    with path.open("rb") as file:
        file.seek(start)
        while length and (block := file.read(min(size, length))):
            length -= len(block)
            yield block
