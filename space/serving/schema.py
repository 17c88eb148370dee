"""The part of OpenAI's chat completions that is understood; other fields are ignored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_MESSAGES = 64
_CHARACTERS = 100_000


class _Asked(BaseModel):
    model_config = ConfigDict(strict=True)  # true is no number, "5" neither


class TextPart(_Asked):
    """A piece of a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=_CHARACTERS)]


class Message(_Asked):
    """Who said what."""

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
    messages: Annotated[list[Message], Field(min_length=1, max_length=_MESSAGES)]
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

    @field_validator("messages")
    @classmethod
    def _ends_with_the_user(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role == "assistant":
            raise ValueError("the last message must not be the assistant's")
        return messages

    @property
    def stops(self) -> list[str]:
        """Texts before which the answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wanted_tokens(self) -> int | None:
        """How long the answer may be, where the request says so."""
        return self.max_completion_tokens or self.max_tokens


class Delta(BaseModel):
    """What is new in a chunk."""

    role: Literal["assistant"] | None = None
    content: str | None = None


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
