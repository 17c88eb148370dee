"""Who may ask now: a bounded queue before a bounded number of answers, and a rate for each client."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_CLIENTS = 10_000  # remembered at most


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
