"""Before and around every request: the size of its body, headers that keep the page to itself, and counting."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from serving.replies import refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from serving.telemetry import Telemetry

_BODY = 512 * 1024  # bytes
_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, paths: frozenset[str]) -> None:
        self._app, self._telemetry, self._paths = app, telemetry, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 499  # the client left before an answer began

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        path = scope["path"] if scope["path"] in self._paths else "other"
        try:
            await self._pass(scope, receive, counted)
        finally:
            self._telemetry.requests.labels(path, status).inc()
            self._telemetry.seconds.labels(path).observe(time.monotonic() - begun)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The body is read here, up to the limit, so that no handler holds more than that."""
        parts: list[bytes] = []
        size, more = 0, scope["method"] in ("POST", "PUT", "PATCH")
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > _BODY:
                reply = refusal(413, f"the body has more than {_BODY} bytes", code="too_large",
                                headers={"Connection": "close"})
                await reply(scope, receive, send)
                return
        body: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def replayed() -> Message:
            return body.pop() if body else await receive()

        await self._app(scope, replayed if parts else receive, send)
