"""What the requests of one app share, and how one of them is answered."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from starlette.responses import JSONResponse, Response

from serving.admission import Gate, Rate
from serving.answering import Answer
from serving.generation import EngineError
from serving.replies import HeldStream, chunk, event, refusal
from serving.schema import AnswerMessage, ChatCompletion, ChatRequest, Choice, Usage
from serving.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    from starlette.requests import Request

    from serving.bundle import Bundle
    from serving.engine import Engine
    from serving.settings import Settings

T = TypeVar("T")
_SLOW = 5  # seconds more than an answer may take, for a client that reads slowly


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


class Desk:
    """What the requests of one app share."""

    def __init__(self, bundle: Bundle, engine: Engine, settings: Settings) -> None:
        self.bundle, self.engine, self.settings, self.telemetry = bundle, engine, settings, Telemetry(engine.pid)
        self.gate = Gate(concurrency=settings.concurrency, queue=settings.queue)
        self.rate = Rate(settings.rate_per_minute)
        self.telemetry.answering.set_function(lambda: self.gate.inside)
        self.telemetry.waiting.set_function(lambda: self.gate.waiting)
        self.telemetry.most.set_function(lambda: self.gate.most)
        identity = bundle.identity
        self.telemetry.model.labels(identity.model, identity.label, identity.commit or "", engine.name).set(1)
        self.started = int(time.time())

    async def chat(self, asked: ChatRequest, request: Request) -> Response:
        """Answer one request, streaming or not."""
        if asked.model and asked.model != self.bundle.identity.model:
            return refusal(404, f"there is no model {asked.model} here, only {self.bundle.identity.model}",
                           code="model_not_found", param="model")
        if reason := self.engine.broken():
            raise EngineError(reason)
        self.rate.take(request.client.host if request.client else "")
        answer = Answer.prepare(asked, self.bundle, self.engine, self.settings, self.telemetry)
        async with AsyncExitStack() as stack:
            await self._while_there(request, stack.enter_async_context(self.gate.enter()))
            if asked.stream:
                usage = asked.stream_options is not None and asked.stream_options.include_usage
                return HeldStream(self._events(answer, usage=usage), stack.pop_all(), self.settings.seconds + _SLOW)
            text = await self._while_there(request, _joined(answer))
            return JSONResponse(self._completion(answer, text).model_dump())

    async def _events(self, answer: Answer, *, usage: bool) -> AsyncGenerator[str]:
        common, done = self._common(), False
        try:
            yield chunk(common, {"role": "assistant", "content": ""}, None)
            async with aclosing(answer.pieces()) as pieces:
                async for text in pieces:
                    yield chunk(common, {"content": text}, None)
            yield chunk(common, {}, answer.finish_reason)
            if usage:
                yield event({**common, "object": "chat.completion.chunk", "choices": [],
                             "usage": _usage(answer).model_dump()})
            yield "data: [DONE]\n\n"
            done = True
        except EngineError as error:  # the status is sent already
            done = True
            yield event({"error": {"message": str(error), "type": "server_error", "code": "engine_failed"}})
        finally:
            if not done:
                self.telemetry.abandoned.inc()

    async def _while_there(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """The result of some work, given up when the client leaves."""
        task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.telemetry.abandoned.inc()
                raise ClientLeftError
            return task.result()
        finally:
            for each in (task, leaving):
                each.cancel()
            await asyncio.wait([task, leaving])

    def _completion(self, answer: Answer, text: str) -> ChatCompletion:
        finish: Literal["stop", "length"] = "length" if answer.finish_reason == "length" else "stop"
        choice = Choice(message=AnswerMessage(content=text), finish_reason=finish)
        return ChatCompletion(**self._common(), choices=[choice], usage=_usage(answer))

    def _common(self) -> dict[str, Any]:
        identity = self.bundle.identity
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": identity.model,
                "system_fingerprint": identity.label}

    def health(self) -> JSONResponse:
        """Which model answers, and whether it can."""
        reason = self.engine.broken()
        identity = asdict(self.bundle.identity)
        body = {"ok": reason is None, **identity, "engine": self.engine.name}
        return JSONResponse(body if reason is None else {**body, "reason": reason}, 200 if reason is None else 503)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _joined(answer: Answer) -> str:
    async with aclosing(answer.pieces()) as pieces:
        return "".join([text async for text in pieces])


def _usage(answer: Answer) -> Usage:
    asked, written = len(answer.prompt), answer.tokens
    return Usage(prompt_tokens=asked, completion_tokens=written, total_tokens=asked + written)
