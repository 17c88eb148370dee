"""Settings from the environment, and what kind of host this is."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("space")
APP = Path(__file__).parents[1]
IDENTITY = "identity.json"
_REFUSED = (401, 403, 404)


class SettingError(Exception):
    """The app cannot start as it is set up; the text says what to change."""


@dataclass(frozen=True)
class Settings:
    """What may be set; the names in capitals are the variables."""

    host_kind: str  # Space, container or laptop
    host: str  # HOST
    port: int  # PORT
    offline: bool  # HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE
    model_dir: Path | None  # MODEL_DIR
    hub_model: str | None  # HF_MODEL_ID, @REVISION is optional
    weights: str  # WEIGHTS: int8 or int4; empty takes what the bundle names first
    threads: int  # THREADS; 0 leaves it to the engine
    max_input_tokens: int  # MAX_INPUT_TOKENS, the conversation so far
    max_new_tokens: int  # MAX_NEW_TOKENS, one answer
    concurrency: int  # MAX_CONCURRENCY, answers generated at once
    queue: int  # MAX_QUEUE, requests that may wait for that
    rate_per_minute: int  # RATE_PER_MINUTE, requests of one client; 0 sets no limit
    seconds: int  # MAX_SECONDS, the generation of one answer

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Settings":
        """The settings of an environment; raises SettingError for one that is no number, out of range or unknown."""
        def number(name: str, default: int, least: int, most: int) -> int:
            text = environment.get(name) or str(default)
            if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
                raise SettingError(f"{name}={text}: expected a whole number from {least} to {most}")
            return int(text)

        kind = host_kind(environment, Path.exists)
        weights = environment.get("WEIGHTS", "")
        if weights not in ("", "int8", "int4"):
            raise SettingError(f"WEIGHTS={weights}: expected int8 or int4")
        folder = environment.get("MODEL_DIR")
        return cls(
            host_kind=kind,
            host=environment.get("HOST") or ("127.0.0.1" if kind == "laptop" else "0.0.0.0"),  # noqa: S104
            port=number("PORT", 7860 if kind == "Space" else 5000, 1, 65535),
            offline=any(environment.get(name, "").lower() in ("1", "true", "yes", "on")
                        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")),
            model_dir=Path(folder) if folder else None,
            hub_model=environment.get("HF_MODEL_ID") or None,
            weights=weights,
            threads=number("THREADS", 0, 0, 256),
            max_input_tokens=number("MAX_INPUT_TOKENS", 1024, 1, 1_000_000),
            max_new_tokens=number("MAX_NEW_TOKENS", 512, 1, 100_000),
            concurrency=number("MAX_CONCURRENCY", 4, 1, 256),
            queue=number("MAX_QUEUE", 16, 0, 10_000),
            rate_per_minute=number("RATE_PER_MINUTE", 60, 0, 1_000_000),
            seconds=number("MAX_SECONDS", 60, 1, 3600),
        )


def host_kind(environment: Mapping[str, str], exists: Callable[[Path], bool]) -> str:
    """Space, container or laptop."""
    if environment.get("SPACE_ID"):
        return "Space"
    if environment.get("KUBERNETES_SERVICE_HOST") or environment.get("DYNO") or any(
        exists(Path(marker)) for marker in ("/.dockerenv", "/run/.containerenv")
    ):
        return "container"
    return "laptop"


def find_model(settings: Settings) -> Path:
    """The folder to serve: MODEL_DIR, else the bundle in assets/ or space/assets/, else HF_MODEL_ID downloaded.

    Raises SettingError if there is none.
    """
    if settings.model_dir:
        if not settings.model_dir.is_dir():
            raise SettingError(f"MODEL_DIR={settings.model_dir}: is no folder; `make bundle` makes one in space/assets")
        return settings.model_dir
    for place in (APP / "assets", Path("assets"), Path("space/assets")):
        if (place / IDENTITY).is_file():
            return place
    if not settings.hub_model:
        raise SettingError("there is no model to serve: run `make bundle`, or set MODEL_DIR to a bundle, or "
                           "HF_MODEL_ID to download one")
    if settings.offline:
        raise SettingError(f"no bundle here, and {settings.hub_model} may not be downloaded: HF_HUB_OFFLINE or "
                           "TRANSFORMERS_OFFLINE is set; run prepare_assets.py before, or unset it")
    return _download(settings.hub_model)


def _download(model: str) -> Path:
    """The files of NAME[@REVISION]. Raises SettingError if the Hub refuses, even if there is a copy from before.

    Without an answer of the Hub, that copy is served, with a warning.
    """
    import httpx2
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name, at, revision = model.partition("@")
    if at and not revision:
        raise SettingError(f"HF_MODEL_ID={model}: expected NAME or NAME@REVISION, the revision is empty")
    try:
        # snapshot_download alone would serve an old copy in silence if the Hub refused the token.
        HfApi().model_info(name, revision=revision or None)
        return Path(snapshot_download(name, revision=revision or None))
    except (OSError, HfHubHTTPError, HFValidationError, httpx2.HTTPError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == httpx2.codes.UNAUTHORIZED and os.environ.get("HF_TOKEN"):
            raise SettingError(f"HF_MODEL_ID={model}: the Hub refuses HF_TOKEN (401); correct it, or unset it for a "
                               "public model") from error
        refused = isinstance(error, HFValidationError) or status in _REFUSED
        copy = None if refused else _copy_of(name, revision)
        if copy is None:
            raise SettingError(f"HF_MODEL_ID={model}: could not be downloaded; check name, revision, HF_TOKEN and "
                               f"network: {error}") from error
        logger.warning("HF_MODEL_ID=%s: the Hub does not answer; serving the copy of commit %s from before", model,
                       copy.name)
        return copy


def _copy_of(name: str, revision: str) -> Path | None:
    """What was downloaded before, None if nothing was."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
