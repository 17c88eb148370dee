"""The app: chat completions as OpenAI's clients know them, the page, health and metrics."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from serving import schema
from serving.answering import ChatAnswer, TooLong
from serving.bundle import BadConversation, Bundle
from serving.engine import Engine, EngineError
from serving.limits import Gate, Rate, RequestMiddleware, TooBusy
from serving.schema import ChatCompletion, ChatRequest, ErrorReply, refusal
from serving.settings import Settings
from serving.telemetry import Telemetry

_STATIC = Path(__file__).parent / "static"
_CHAT = "/v1/chat/completions"
_PATHS = frozenset({"/", "/healthz", "/about", "/metrics", "/openapi.json", "/v1/models", _CHAT})
_DROPPED = "X-Dropped-Messages"  # with truncation: how many of the oldest messages the model did not see
_REPLIES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}},
    **{code: {"model": ErrorReply} for code in (400, 404, 413, 429, 503)},
}
T = TypeVar("T")
_SLOW = 5  # seconds more than an answer may take, for a client that reads slowly


def create_app(bundle: Bundle, engine: Engine, settings: Settings) -> FastAPI:
    """The app around a model that is loaded already; it closes the engine when it ends."""
    service = ChatService(bundle, engine, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()

    app = FastAPI(title=bundle.identity.model, version=bundle.identity.label, lifespan=lifespan,
                  docs_url=None, redoc_url=None)
    app.add_middleware(RequestMiddleware, telemetry=service.telemetry, paths=_PATHS)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    _add_chat(app, service)
    _add_pages(app, service)
    _add_refusals(app)
    return app


def _add_chat(app: FastAPI, service: "ChatService") -> None:
    @app.post(_CHAT, response_model=ChatCompletion, responses=_REPLIES)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Continue a conversation; with "stream", as server-sent events."""
        return await service.chat(asked, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model there is."""
        identity = service.bundle.identity
        return {"object": "list", "data": [{"id": identity.model, "object": "model", "created": service.started,
                                            "owned_by": "champion", "version": identity.label}]}


def _add_pages(app: FastAPI, service: "ChatService") -> None:
    examples = service.bundle.examples()

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_STATIC / "index.html")

    @app.get("/healthz")
    async def health() -> JSONResponse:
        """Which model answers, and whether it can."""
        return service.health()

    @app.get("/about")
    async def about() -> dict[str, Any]:
        """What the page shows beside the conversation."""
        identity, origin = service.bundle.identity, service.bundle.origin
        return {**asdict(identity), **asdict(origin), "label": identity.label, "engine": service.engine.name,
                "origin": origin.sentence, "examples": examples}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.telemetry.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        unread = first["type"] == "json_invalid"  # its place is a number of characters
        where = "" if unread else ".".join(str(part) for part in first["loc"] if part != "body")
        return refusal(400, f"{where or 'body'}: {first['msg']}", code="invalid_request", param=where or None)

    @app.exception_handler(TooLong)
    @app.exception_handler(BadConversation)
    async def bad(_: Request, error: TooLong | BadConversation) -> JSONResponse:
        code = "context_length_exceeded" if isinstance(error, TooLong) else "invalid_request"
        return refusal(400, str(error), code=code, param="messages")

    @app.exception_handler(TooBusy)
    async def busy(_: Request, error: TooBusy) -> JSONResponse:
        return refusal(429, f"{error}; try again in {error.retry_after} s", code="busy",
                       headers={"Retry-After": str(error.retry_after)})

    @app.exception_handler(EngineError)
    async def failed(_: Request, error: EngineError) -> JSONResponse:
        return refusal(503, f"the engine failed: {error}", code="engine_failed")

    @app.exception_handler(ClientLeftError)
    async def left(_: Request, __: ClientLeftError) -> Response:
        return Response(status_code=499)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}",
                       code=str(error.detail).lower().replace(" ", "_"), headers=error.headers)


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


class ChatService:
    """The model, its limits and its counters, which all requests of one app share."""

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
        if self.engine.failure:
            raise EngineError(self.engine.failure)
        self.rate.take(request.client.host if request.client else "")
        answer = ChatAnswer.prepare(asked, self.bundle, self.engine, self.settings, self.telemetry)
        headers = {_DROPPED: str(answer.dropped)} if answer.dropped else {}
        async with AsyncExitStack() as stack:
            await self._while_there(request, stack.enter_async_context(self.gate.enter()))
            if asked.stream:
                events = self._events(answer, usage=bool(asked.stream_options and asked.stream_options.include_usage))
                return schema.HeldStream(events, stack.pop_all(), self.settings.seconds + _SLOW, headers)
            text = await self._while_there(request, _joined(answer))
            return JSONResponse(self._completion(answer, text).model_dump(), headers=headers)

    async def _events(self, answer: ChatAnswer, *, usage: bool) -> AsyncGenerator[str]:
        common, done = self._common(), False
        try:
            yield schema.chunk(common, {"role": "assistant", "content": ""}, None)
            async with aclosing(answer.pieces()) as pieces:
                async for text in pieces:
                    yield schema.chunk(common, {"content": text}, None)
            yield schema.chunk(common, {}, answer.finish_reason)
            if usage:
                yield schema.event({**common, "object": "chat.completion.chunk", "choices": [],
                                    "usage": _usage(answer).model_dump()})
            yield "data: [DONE]\n\n"
            done = True
        except EngineError as error:  # the status is sent already
            done = True
            yield schema.event({"error": {"message": str(error), "type": "server_error", "code": "engine_failed"}})
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

    def _completion(self, answer: ChatAnswer, text: str) -> ChatCompletion:
        finish: Literal["stop", "length"] = "length" if answer.finish_reason == "length" else "stop"
        choice = schema.Choice(message=schema.AnswerMessage(content=text), finish_reason=finish)
        return ChatCompletion(**self._common(), choices=[choice], usage=_usage(answer))

    def _common(self) -> dict[str, Any]:
        identity = self.bundle.identity
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": identity.model,
                "system_fingerprint": identity.label}

    def health(self) -> JSONResponse:
        """Which model answers, and whether it can."""
        reason = self.engine.failure
        body = {"ok": reason is None, **asdict(self.bundle.identity), "engine": self.engine.name}
        return JSONResponse(body, 200) if reason is None else JSONResponse({**body, "reason": reason}, 503)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _joined(answer: ChatAnswer) -> str:
    async with aclosing(answer.pieces()) as pieces:
        return "".join([text async for text in pieces])


def _usage(answer: ChatAnswer) -> schema.Usage:
    asked, written = len(answer.prompt), answer.tokens
    return schema.Usage(prompt_tokens=asked, completion_tokens=written, total_tokens=asked + written)
