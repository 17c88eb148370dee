"""The app: chat completions as OpenAI's clients know them, the page, health and metrics."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from serving.admission import Busy
from serving.answering import TooLong
from serving.bundle import BadConversation, Bundle
from serving.desk import ClientLeftError, Desk
from serving.generation import EngineError
from serving.guard import Guard
from serving.replies import refusal
from serving.schema import ChatCompletion, ChatRequest, ErrorReply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from serving.engine import Engine
    from serving.settings import Settings

_STATIC = Path(__file__).parent / "static"
_CHAT = "/v1/chat/completions"
_PATHS = frozenset({"/", "/healthz", "/about", "/metrics", "/openapi.json", "/v1/models", _CHAT})
_EXAMPLES = 4
_REPLIES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}},
    **{code: {"model": ErrorReply} for code in (400, 404, 413, 429, 503)},
}


def create_app(bundle: Bundle, engine: Engine, settings: Settings) -> FastAPI:
    """The app around a model that is loaded already; it closes the engine when it ends."""
    desk = Desk(bundle, engine, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()

    app = FastAPI(title=bundle.identity.model, version=bundle.identity.label, lifespan=lifespan,
                  docs_url=None, redoc_url=None)
    app.add_middleware(Guard, telemetry=desk.telemetry, paths=_PATHS)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    _add_chat(app, desk)
    _add_pages(app, desk)
    _add_refusals(app)
    return app


def _add_chat(app: FastAPI, desk: Desk) -> None:
    @app.post(_CHAT, response_model=ChatCompletion, responses=_REPLIES)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Continue a conversation; with "stream", as server-sent events."""
        return await desk.chat(asked, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model there is."""
        identity = desk.bundle.identity
        return {"object": "list", "data": [{"id": identity.model, "object": "model", "created": desk.started,
                                            "owned_by": "champion", "version": identity.label}]}


def _add_pages(app: FastAPI, desk: Desk) -> None:
    examples = [each["question"] for each in desk.bundle.questions()[:_EXAMPLES]]

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_STATIC / "index.html")

    @app.get("/healthz")
    async def health() -> JSONResponse:
        """Which model answers, and whether it can."""
        return desk.health()

    @app.get("/about")
    async def about() -> dict[str, Any]:
        """What the page shows beside the conversation."""
        return {**asdict(desk.bundle.identity), "label": desk.bundle.identity.label, "engine": desk.engine.name,
                "examples": examples}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(desk.telemetry.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        unread = first["type"] == "json_invalid"  # its place is a number of characters
        where = "" if unread else ".".join(str(part) for part in first["loc"] if part != "body")
        return refusal(400, f"{where or 'body'}: {first['msg']}", code="invalid_request", param=where or None)

    @app.exception_handler(TooLong)
    async def too_long(_: Request, error: TooLong) -> JSONResponse:
        return refusal(400, str(error), code="context_length_exceeded", param="messages")

    @app.exception_handler(BadConversation)
    async def bad(_: Request, error: BadConversation) -> JSONResponse:
        return refusal(400, str(error), code="invalid_request", param="messages")

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
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
