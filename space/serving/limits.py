"""Limits on requests: the size of the body, the queue, and the rate of each client."""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.schema import refusal

if TYPE_CHECKING:
    from serving.telemetry import Telemetry

_BODY = 512 * 1024  # bytes
_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_CLIENTS = 10_000  # remembered at most


class RequestMiddleware:
    """ASGI middleware: bound the body, add security headers, count and time every request."""

    def __init__(self, app: ASGIApp, telemetry: "Telemetry", paths: frozenset[str]) -> None:
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


class TooBusy(Exception):
    """The request is refused for now; `retry_after` is in seconds."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.retry_after = max(1, math.ceil(seconds))


class Gate:
    """Let at most `concurrency` requests generate at once, and at most `queue` wait for that."""

    def __init__(self, *, concurrency: int, queue: int) -> None:
        self._places, self._queue, self._concurrency = asyncio.Semaphore(concurrency), queue, concurrency
        self.inside = self.waiting = self.most = 0  # most: that ever waited at once
        self._usual = 1.0  # seconds an answer takes, smoothed

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Wait for a place and hold it; raises TooBusy at once if too many wait already."""
        if self._places.locked():
            if self.waiting >= self._queue:
                raise TooBusy("too many requests are waiting", self._usual * (self.waiting + 1) / self._concurrency)
            self.most = max(self.most, self.waiting + 1)
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.inside += 1
        begun = time.monotonic()
        try:
            yield
        finally:
            self._usual += 0.1 * (time.monotonic() - begun - self._usual)
            self.inside -= 1
            self._places.release()


class Rate:
    """A token bucket for each client, which fills again within a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # left, at

    def take(self, client: str) -> None:
        """Count one request; raises TooBusy if the client's bucket is empty."""
        if not self._per_minute:
            return
        now = self._clock()
        left, at = self._buckets.pop(client, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - at) * self._per_minute / 60)
        self._buckets[client] = max(left - 1, 0.0) if left >= 1 else left, now
        while len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        if left < 1:
            raise TooBusy(f"more than {self._per_minute} requests a minute", (1 - left) * 60 / self._per_minute)
