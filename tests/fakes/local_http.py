"""A small HTTP server on this machine, as a context manager, for services that a test plays."""

import json
import secrets
import socket
import threading
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to clients: it stays free until it is taken."""
    while True:
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port := 16_384 + secrets.randbelow(16_384)))
            except OSError:
                continue
            return port


class Server(ThreadingHTTPServer):
    """For many clients at once; one that goes away is no error."""

    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Quiet."""


class Handler(BaseHTTPRequestHandler):
    """Asks its owner for every answer."""

    owner: "LocalServer"

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, answer = self.owner.answer(self.command, self.path, self.headers, body)
        text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PATCH = _any  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        """Quiet."""


class LocalServer:
    """Listens on a free port of 127.0.0.1, `url`; a subclass says what it answers."""

    handler: type[BaseHTTPRequestHandler] = Handler
    url: str

    def answer(self, method: str, path: str, headers: Message, body: bytes, /) -> tuple[int, object]:
        """Status and body; a text is sent as it is, all else as JSON."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._server = Server(("127.0.0.1", 0), type("Handler", (self.handler,), {"owner": self}))
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
