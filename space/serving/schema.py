"""The part of OpenAI's chat completions that this app supports; other fields are ignored."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

_MESSAGES = 64
_CHARACTERS = 100_000
logger = logging.getLogger(__name__)


class _Asked(BaseModel):
    model_config = ConfigDict(strict=True)  # true is no number, "5" neither


class TextPart(_Asked):
    """A piece of a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=_CHARACTERS)]


class ChatMessage(_Asked):
    """One message of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(min_length=1, max_length=_CHARACTERS)] | Annotated[
        list[TextPart], Field(min_length=1, max_length=_MESSAGES)]

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_Asked):
    """What a stream tells beside the answer."""

    include_usage: bool = False


class ChatRequest(_Asked):
    """A conversation to continue."""

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=_MESSAGES)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stop: Annotated[str, Field(min_length=1, max_length=100)] | Annotated[
        list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=4)] | None = None
    n: Literal[1] | None = None
    truncation: Literal["auto", "disabled"] = "disabled"  # of OpenAI's Responses API: auto leaves out the oldest turns

    @field_validator("messages")
    @classmethod
    def _ends_with_the_user(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        if messages[-1].role == "assistant":
            raise ValueError("the last message must not be the assistant's")
        return messages

    @property
    def stops(self) -> list[str]:
        """Texts before which the answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wanted_tokens(self) -> int | None:
        """The requested limit on the answer's tokens."""
        return self.max_completion_tokens or self.max_tokens


class AnswerMessage(BaseModel):
    """The whole answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The one answer there is."""

    index: int = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """The answer to a request that does not stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """As OpenAI's clients read it."""

    error: ErrorDetail


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

    def __init__(self, events: AsyncGenerator[str], place: AsyncExitStack, seconds: float,
                 headers: Mapping[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream",
                         headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers})
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
