"""Weights for serving: OpenVINO IR in int8 and int4, made by optimum-intel in the environment of the builder."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

COMPRESSED = ("int8", "int4")
_GROUP = 64  # weights that share a scale in int4; divides the widths of Llama models and of the pocket model


class ExportError(Exception):
    """The weights could not be compressed; the text says why."""


def lacking() -> list[str]:
    """The packages that compression needs and this environment does not have."""
    return [name for name in ("torch", "optimum.intel", "nncf", "openvino") if not _is_there(name)]


def compress(release: Path, bundle: Path, precisions: list[str]) -> None:
    """Write each precision into a folder of its name; raises ExportError."""
    from nncf.errors import InvalidGroupSizeError
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    for precision in precisions:
        logger.info("compressing to %s", precision)
        bits = {"bits": 8} if precision == "int8" else {"bits": 4, "group_size": _GROUP}
        try:
            model = OVModelForCausalLM.from_pretrained(
                str(release), export=True, compile=False, local_files_only=True,
                quantization_config=OVWeightQuantizationConfig(**bits),
            )
            model.save_pretrained(bundle / precision)
        # What exporters raise for what they lack, and nncf for a model narrower than a group.
        except (RuntimeError, ValueError, KeyError, ImportError, InvalidGroupSizeError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ExportError(f"{release}: cannot be compressed to {precision}: {first}") from error


def copy_weights(release: Path, bundle: Path) -> None:
    """The weights as they were released, for transformers."""
    for path in sorted(release.glob("model*.safetensors*")):
        shutil.copyfile(path, bundle / path.name)


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
