"""Serves a chat model: `python app.py`. What may be set is in serving/settings.py."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TYPE_CHECKING

from serving.settings import SettingError, Settings, find_model

if TYPE_CHECKING:
    from serving.bundle import Bundle
    from serving.generation import Engine

logger = logging.getLogger("space")


def main() -> int:
    """Load the model, then serve it until SIGTERM; exit 2 where something is not set up."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    begun = time.monotonic()
    try:
        settings = Settings.read(os.environ)
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        folder = find_model(settings)
        logger.info("host: %s; model: %s", settings.host_kind, folder)

        import uvicorn

        from serving.bundle import Bundle
        from serving.routes import create_app

        bundle = Bundle.open(folder)
        engine = load(bundle, settings)
    except SettingError as error:
        logger.critical("%s", error)
        return 2
    app = create_app(bundle, engine, settings)
    logger.info("%s %s on %s, loaded in %.1f s; http://%s:%d", bundle.identity.model, bundle.identity.label,
                engine.name, time.monotonic() - begun, settings.host, settings.port)
    # The proxy of a Space says who asks; elsewhere nobody is believed about that.
    trusted = "*" if settings.host_kind == "Space" else ""
    uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning", forwarded_allow_ips=trusted,
                timeout_graceful_shutdown=settings.seconds + 5)
    return 0


def load(bundle: Bundle, settings: Settings) -> Engine:
    """The engine for what the bundle holds: OpenVINO for compressed weights, transformers for the others."""
    if bundle.weights == ("safetensors",):
        from serving.transformers_engine import TransformersEngine

        logger.warning("%s holds no compressed weights; it is served by transformers, slower and with more memory",
                       bundle.folder)
        return TransformersEngine(bundle.folder, threads=settings.threads)
    if settings.weights not in bundle.weights:
        raise SettingError(f"WEIGHTS={settings.weights}: {bundle.folder} holds {', '.join(bundle.weights)}")
    from serving.openvino_engine import OpenVinoEngine

    return OpenVinoEngine(bundle.folder / settings.weights, threads=settings.threads, concurrency=settings.concurrency)


if __name__ == "__main__":
    sys.exit(main())
