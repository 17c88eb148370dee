"""One answer as it is generated: tokens come from the engine, and are taken by the request that waits for them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence


class EngineError(Exception):
    """The engine failed while it generated."""


@dataclass(frozen=True)
class Options:
    """How to generate; a temperature of 0 is greedy."""

    max_new_tokens: int
    stop_tokens: Collection[int]
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class Piece:
    """What one step gave one answer: tokens, and stop or length or what failed where it was the last step."""

    number: int
    tokens: Sequence[int] = ()
    finish_reason: str | None = None
    error: str | None = None


class Generation:
    """One answer, in the event loop alone. It holds at most `max_new_tokens` that nobody took yet."""

    def __init__(self, options: Options, stop: Callable[[], None]) -> None:
        self.finish_reason = "stop"
        self.stop = stop  # nobody waits any more
        self._stop_tokens = options.stop_tokens
        self._tokens: list[int] = []
        self._news, self._over = asyncio.Event(), False
        self._error: str | None = None

    def put(self, piece: Piece) -> None:
        """Take in what a step gave, without the tokens that end the answer."""
        self._tokens += [token for token in piece.tokens if token not in self._stop_tokens]
        self._over = bool(piece.finish_reason or piece.error)
        self.finish_reason, self._error = piece.finish_reason or "stop", piece.error
        self._news.set()

    async def tokens(self, seconds: float) -> AsyncIterator[list[int]]:
        """All that came since the last look; raises EngineError, and TimeoutError once so many seconds have passed."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        while (left := deadline - clock()) > 0:
            async with asyncio.timeout(left):
                await self._news.wait()
            self._news.clear()
            new, self._tokens = self._tokens, []
            if new:
                yield new
            if self._over and not self._tokens:
                if self._error:
                    raise EngineError(self._error)
                return
        raise TimeoutError
