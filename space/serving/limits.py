"""Before and around every request: the size of its body, headers that keep the page to itself, and counting."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from serving.schema import refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BODY = 512 * 1024  # bytes
_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_CLIENTS = 10_000  # remembered at most
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


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


class Busy(Exception):
    """Come back in so many seconds."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.retry_after = max(1, math.ceil(seconds))


class Gate:
    """At most so many inside, and so many waiting before it."""

    def __init__(self, *, concurrency: int, queue: int) -> None:
        self._places, self._queue, self._concurrency = asyncio.Semaphore(concurrency), queue, concurrency
        self.inside = self.waiting = self.most = 0  # most: that ever waited at once
        self._usual = 1.0  # seconds an answer takes, smoothed

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Wait for a place and hold it; raises Busy at once where too many wait already."""
        if self._places.locked():
            if self.waiting >= self._queue:
                raise Busy("too many requests are waiting", self._usual * (self.waiting + 1) / self._concurrency)
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
    """A bucket of requests for each client, that fills again over a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # left, at

    def take(self, client: str) -> None:
        """Count one request; raises Busy where the client's bucket is empty."""
        if not self._per_minute:
            return
        now = self._clock()
        left, at = self._buckets.pop(client, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - at) * self._per_minute / 60)
        self._buckets[client] = max(left - 1, 0.0) if left >= 1 else left, now
        while len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        if left < 1:
            raise Busy(f"more than {self._per_minute} requests a minute", (1 - left) * 60 / self._per_minute)


class Telemetry:
    """Counters of one app, whose engine is the process with this number."""

    def __init__(self, engine: int) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        ProcessCollector(namespace="engine", pid=lambda: engine, registry=self._registry)
        self.requests = Counter("chat_requests_total", "Requests by path and status", ["path", "status"],
                                registry=self._registry)
        self.errors = Counter("chat_errors_total", "Answers that failed in the engine", registry=self._registry)
        self.abandoned = Counter("chat_abandoned_total", "Answers stopped because the client went away",
                                 registry=self._registry)
        self.tokens = Counter("chat_tokens_total", "Tokens read and written", ["kind"], registry=self._registry)
        self.seconds = Histogram("chat_request_seconds", "From the request to its last byte", ["path"],
                                 buckets=_SECONDS, registry=self._registry)
        self.first_token = Histogram("chat_first_token_seconds", "From the request to the answer's first token",
                                     buckets=_SECONDS, registry=self._registry)
        self.answering = Gauge("chat_answering", "Answers under way", registry=self._registry)
        self.waiting = Gauge("chat_waiting", "Requests that wait for their turn", registry=self._registry)
        self.most = Gauge("chat_queue_most", "Requests that ever waited at once", registry=self._registry)
        self.model = Gauge("chat_model_info", "The model that answers", ["model", "version", "commit", "engine"],
                           registry=self._registry)

    def text(self) -> bytes:
        """All of it."""
        text: bytes = generate_latest(self._registry)
        return text
