"""Serve a chat model: `python app.py`. The settings are environment variables, see serving/settings.py."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import packages  # noqa: F401 - a missing package is one line
from files import shown
from serving import port
from serving.settings import SettingError, Settings, find_model

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from serving.bundle import Bundle
    from serving.engine import Engine

logger = logging.getLogger("space")

_BACKLOG = 2048  # connections that may wait to be taken, as uvicorn has it
_PRIVATE = "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"


def main() -> int:
    """Load the model, then serve it until SIGTERM; exit 1 if its engine died, 2 if something is not set up."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request to the Hub
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        settings = Settings.read(os.environ)
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        with port.bind(settings) as bound:
            return asyncio.run(serve(settings, find_model(settings), bound))
    except SettingError as error:
        logger.critical("%s", " ".join(str(error).split()))  # one line, whatever a library said
        return 2


def _end(number: int, _: object) -> None:
    """Exit at once, with 143 for SIGTERM and 130 for Ctrl-C. While uvicorn serves, it has handlers of its own.

    An exception instead would come up in the middle of asyncio's or a download's bookkeeping, which then waits forever
    for a process or a thread that it lost. There is nothing to save, and the engine's process ends with this one.
    """
    os._exit(128 + number)


async def serve(settings: Settings, folder: Path, bound: socket.socket) -> int:
    """Serve the model in a folder on a bound socket; returns the exit code, raises SettingError."""
    begun = time.monotonic()
    logger.info("loading the model in %s", shown(folder))

    from serving.bundle import Bundle

    bundle = Bundle.open(folder)
    loading = asyncio.create_task(load(bundle, settings))
    await asyncio.sleep(0)  # start the engine's process; the imports below run beside it

    import uvicorn

    from serving.api import create_app

    engine = await loading
    logger.info("loaded in %.1f s (%s, %s)", time.monotonic() - begun, engine.name, settings.host_kind)
    # On a Space the Hub's proxies name the client. Elsewhere X-Forwarded-For is not trusted.
    trusted = _PRIVATE if settings.host_kind == "Space" else ""
    server = uvicorn.Server(uvicorn.Config(
        create_app(bundle, engine, settings), host=settings.host, port=settings.port, log_level="warning",
        forwarded_allow_ips=trusted, timeout_graceful_shutdown=settings.seconds + 5,
        timeout_keep_alive=75))  # longer than clients and proxies keep an idle connection, so that they close it

    async def end_with_engine() -> bool:
        server.should_exit = died = await engine.died()
        return died

    ending = asyncio.create_task(end_with_engine())
    try:
        bound.listen(_BACKLOG)
    except OSError as error:  # two apps that start at the same moment can both bind it
        await engine.close()
        raise port.refusal(settings, error) from error
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - which mean every address
    address = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    logger.info("%s\n  chat page  %s\n  API        %s/v1 (OpenAI-compatible)\nCtrl-C stops it.",
                f"{bundle.identity.title} is ready. {bundle.origin.sentence}".rstrip(), address, address)
    await server.serve(sockets=[bound])
    return int(await ending)


async def load(bundle: Bundle, settings: Settings) -> Engine:
    """Start OpenVINO for compressed weights, transformers for the released ones."""
    from serving.engine import Engine
    from serving.identity import check_safe

    folder = bundle.folder
    check_safe(bundle.weights, folder)
    weights = settings.weights or bundle.weights[0]
    if bundle.weights == ("safetensors",):
        logger.warning("%s holds no compressed weights; it is served by transformers, slower and with more memory",
                       folder)
    elif weights in bundle.weights:
        folder /= weights
    else:
        raise SettingError(f"WEIGHTS={weights}: {folder} holds {', '.join(bundle.weights)}")
    return await Engine.open(folder, threads=settings.threads, concurrency=settings.concurrency)


if __name__ == "__main__":
    sys.exit(main())
