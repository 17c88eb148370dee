"""The shapes of what is sent: OpenAI's errors, chunks of a stream, and a stream that gives its place back."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, StreamingResponse

from serving.schema import ErrorDetail, ErrorReply

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from contextlib import AsyncExitStack

    from starlette.types import Receive, Scope, Send

logger = logging.getLogger(__name__)


def refusal(
    status: int, message: str, *, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    kind = "rate_limit_error" if status == 429 else kind
    reply = ErrorReply(error=ErrorDetail(message=message, type=kind, param=param, code=code))
    return JSONResponse(reply.model_dump(), status, headers)


def event(data: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def chunk(common: Mapping[str, Any], delta: Mapping[str, str], finish_reason: str | None) -> str:
    """One piece of a streamed completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return event({**common, "object": "chat.completion.chunk", "choices": [choice]})


class HeldStream(StreamingResponse):
    """A stream of events that holds a place, and gives it back even when the client leaves before the first one.

    A client that has not read it after so many seconds is cut off.
    """

    def __init__(self, events: AsyncGenerator[str], place: AsyncExitStack, seconds: float) -> None:
        super().__init__(events, media_type="text/event-stream",
                         headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._events, self._place, self._seconds = events, place, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, then clean up."""
        async with self._place:
            try:
                async with asyncio.timeout(self._seconds):
                    await super().__call__(scope, receive, send)
            except TimeoutError:
                logger.warning("a client did not read its answer within %d s", self._seconds)
            finally:
                await self._events.aclose()
