"""The processes that share a stage's work, as `accelerate launch` starts them: the first one speaks for all."""

import logging
import os

from src.errors import InvalidParams

_FSDP = "ACCELERATE_USE_FSDP"


def is_first() -> bool:
    """Whether this is the process that talks to services and writes results; a stage alone is that."""
    return _rank() == 0


def set_up() -> None:
    """In every process of a stage, before it works: all but the first keep to their errors.

    Raises InvalidParams for FSDP without GPUs, where accelerate would quietly train a whole copy in every process.
    """
    from accelerate.utils import is_cuda_available

    if os.environ.get(_FSDP, "false").lower() in {"1", "true"} and not is_cuda_available():
        raise InvalidParams("launcher: FSDP needs GPUs and this machine has none; take --use_fsdp out of it")
    if not is_first():
        logging.disable(logging.WARNING)


def launched() -> bool:
    """Whether a launcher watches this process: it ends the others where one fails, and says so."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
