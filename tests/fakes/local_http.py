"""A small HTTP server on this machine, as a context manager, for services that a test plays."""

import secrets
import socket
import threading
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


class LocalServer:
    """Listens on a free port of 127.0.0.1, `url`; requests go to `handler`, which finds this object as `owner`."""

    handler: type[BaseHTTPRequestHandler]
    url: str

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (self.handler,), {"owner": self}))
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
