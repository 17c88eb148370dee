"""One answer as it is generated: tokens pass from the engine's thread to the request that waits for them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class EngineError(Exception):
    """The engine failed while it generated."""


@dataclass(frozen=True)
class Options:
    """How to generate; a temperature of 0 is greedy."""

    max_new_tokens: int
    stop_tokens: frozenset[int]
    temperature: float
    top_p: float
    seed: int


class Engine(Protocol):
    """What runs the weights."""

    name: str

    def start(self, prompt: Sequence[int], options: Options) -> Generation:
        """Begin an answer; to be called in the event loop."""

    def broken(self) -> str | None:
        """Why nothing can be generated any more."""

    def close(self) -> None:
        """Stop every answer and end the thread."""


class Generation:
    """One answer. The engine calls put and end from its thread; stop makes it end early."""

    def __init__(self, prompt: Sequence[int], options: Options) -> None:
        self.prompt, self.options = prompt, options
        self.finish_reason = "stop"
        self.stopped = False
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[list[int] | EngineError | None] = asyncio.Queue()

    def put(self, tokens: Sequence[int]) -> None:
        """Hand over the next tokens, without those that end the answer."""
        if wanted := [token for token in tokens if token not in self.options.stop_tokens]:
            self._send(wanted)

    def end(self, finish_reason: str) -> None:
        """There is no more; stop or length."""
        self.finish_reason = finish_reason
        self._send(None)

    def fail(self, error: EngineError) -> None:
        """There is no more, since the engine failed."""
        self._send(error)

    def stop(self) -> None:
        """Nobody waits any more; the engine gives its place to another answer at its next step."""
        self.stopped = True

    async def tokens(self, seconds: float) -> AsyncIterator[list[int]]:
        """The tokens as they come; raises EngineError, and TimeoutError once so many seconds have passed."""
        deadline = self._loop.time() + seconds
        while True:
            async with asyncio.timeout_at(deadline):
                item = await self._queue.get()
            if item is None:
                return
            if isinstance(item, EngineError):
                raise item
            yield item

    def _send(self, item: list[int] | EngineError | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
