"""Serves a chat model: `python app.py`. What may be set is in serving/settings.py."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import TYPE_CHECKING

from serving.settings import SettingError, Settings, find_model

if TYPE_CHECKING:
    from pathlib import Path

    from serving.bundle import Bundle
    from serving.engine import Engine

logger = logging.getLogger("space")


def main() -> int:
    """Load the model, then serve it until SIGTERM; exit 2 where something is not set up."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = Settings.read(os.environ)
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        asyncio.run(serve(settings, find_model(settings)))
    except SettingError as error:
        logger.critical("%s", " ".join(str(error).split()))  # one line, whatever a library said
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


async def serve(settings: Settings, folder: Path) -> None:
    """Answer from the model in a folder; raises SettingError."""
    begun = time.monotonic()
    logger.info("host: %s; model: %s", settings.host_kind, folder)

    from serving.bundle import Bundle

    bundle = Bundle.open(folder)
    loading = asyncio.create_task(load(bundle, settings))
    await asyncio.sleep(0)  # its process begins, and what serves is imported meanwhile

    import uvicorn

    from serving.routes import create_app

    engine = await loading
    logger.info("%s %s on %s, loaded in %.1f s; http://%s:%d", bundle.identity.model, bundle.identity.label,
                engine.name, time.monotonic() - begun, settings.host, settings.port)
    # The proxy of a Space says who asks; elsewhere nobody is believed about that.
    trusted = "*" if settings.host_kind == "Space" else ""
    await uvicorn.Server(uvicorn.Config(
        create_app(bundle, engine, settings), host=settings.host, port=settings.port, log_level="warning",
        forwarded_allow_ips=trusted, timeout_graceful_shutdown=settings.seconds + 5,
        timeout_keep_alive=75)).serve()  # more than a client or a proxy keeps an idle connection: it is theirs to close


async def load(bundle: Bundle, settings: Settings) -> Engine:
    """The engine for what the bundle holds: OpenVINO for compressed weights, transformers for the others."""
    from serving.engine import Engine

    folder = bundle.folder
    if not bundle.weights:
        raise SettingError(f"{folder}: none of its weights is SAFE, and validation.json says why; make it again with "
                           "prepare_assets.py --weights safetensors")
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
