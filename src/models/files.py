"""Check the files of a base model and of an adapter before anything is loaded from them. No torch."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from src.core.errors import IntegrityError, InvalidInput, Refused
from src.core.records import BaseModelRef, FineTunedModel, LoraSettings, manifest, tree_digest

logger = logging.getLogger(__name__)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
_PLAIN_NAME = re.compile(r"[\w.+-]{1,120}", re.ASCII)
_ADAPTER_FILES = re.compile(r"adapter_(config\.json|model\.safetensors)|README\.md|tokenizer.*|chat_template\.jinja"
                            r"|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt")
_TRAIN_AGAIN = "run `dvc repro fine_tuning`"
_FETCH_AGAIN = "run `dvc repro base_model`"


def check_sources(model: FineTunedModel, base: BaseModelRef, *, root: Path) -> tuple[Path, Path]:
    """Check the files of base and adapter completely; returns their folders.

    root: the repository. Raises InvalidInput for a path outside of it or a missing file, Refused for an adapter of
    another base, custom code or a quantised base, IntegrityError if the files differ from the record.
    """
    if model.base_model != base:
        raise Refused(f"the adapter belongs to base {_named(model.base_model)}, not {_named(base)}; {_TRAIN_AGAIN}")
    base_folder = inside(root, base.path, what="base model")
    adapter_folder = inside(root, model.adapter_path, what="adapter")
    check_base(base_folder)
    check_adapter(adapter_folder, model.lora, names=(base.name, base.path))
    _check_digest(base_folder, base.sha256, _FETCH_AGAIN)
    _check_digest(adapter_folder, model.adapter_sha256, _TRAIN_AGAIN)
    return base_folder, adapter_folder


def inside(root: Path, path: str, *, what: str) -> Path:
    """The folder of a recorded relative path. Raises InvalidInput if it is missing or outside the repository."""
    parts = PurePosixPath(path)
    folder = root / path
    if parts.is_absolute() or ".." in parts.parts or not folder.resolve().is_relative_to(root.resolve()):
        raise InvalidInput(f"{what} path {path!r} leads out of the repository; {_TRAIN_AGAIN} to write it afresh")
    if not folder.is_dir():
        raise InvalidInput(f"{what} folder {path} is missing; run `dvc repro`")
    return folder


def check_base(folder: Path) -> None:
    """Raise Refused for custom code or a quantised base, IntegrityError or InvalidInput without a safetensors file."""
    names = _file_names(folder)
    code = sorted(name for name in names if name.endswith(".py"))
    if code:
        raise Refused(f"{folder / code[0]}: custom code in a base model is never run; choose a base without it")
    config = read_object(folder / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        if name in names and "auto_map" in read_object(folder / name):
            raise Refused(f"{folder / name}: auto_map asks for custom code; choose a base without it")
    if "quantization_config" in config:
        raise Refused(f"{folder}: merge needs a full precision base, this one is quantised; choose another")
    _require_safetensors(folder, names, ".safetensors", _FETCH_AGAIN)
    check_weight_map(folder)


def check_weight_map(folder: Path) -> None:
    """Raise Refused if a weight index names anything but files of its own folder.

    transformers would load `../x.safetensors` too, a file that no digest of this folder covers.
    """
    for index in sorted(folder.glob("*.safetensors.index.json")):
        weight_map = read_object(index).get("weight_map")
        named = weight_map.values() if isinstance(weight_map, dict) else [weight_map]
        for name in named:
            if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name) or not (folder / name).is_file():
                raise Refused(f"{index}: weight_map names {name!r:.140}, which is no file of this folder; "
                              "choose another model, or get a complete copy of this one")


def check_adapter(folder: Path, lora: LoraSettings, *, names: tuple[str, str]) -> None:
    """Check that configuration and weights belong to a LoRA adapter with these settings on this base.

    names: the base's name and its path in the repository; the adapter may state either. Raises Refused, IntegrityError
    or InvalidInput.
    """
    files = _file_names(folder)
    config = read_object(folder / CONFIG_FILE)
    _require_safetensors(folder, files, WEIGHTS_FILE, _TRAIN_AGAIN)
    for name in sorted(files):
        if not _ADAPTER_FILES.fullmatch(name):
            logger.warning("%s: not part of an adapter, left out of the release", folder / name)
    _check_config(folder / CONFIG_FILE, config, names, lora)
    tensor_shapes(folder / WEIGHTS_FILE)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name to shape of each tensor, from the file's header. Raises IntegrityError for a damaged or empty file."""
    try:
        with safe_open(path, framework="numpy") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: damaged safetensors file ({error}); {_TRAIN_AGAIN}") from None
    if not shapes:
        raise IntegrityError(f"{path}: holds no tensor; {_TRAIN_AGAIN}")
    return shapes


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a model's configuration file. Raises InvalidInput for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else "not JSON"
        raise InvalidInput(f"{path}: {what}; run `dvc repro` to write it afresh") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}: expected a JSON object; run `dvc repro` to write it afresh")
    return value


def _check_config(path: Path, config: Mapping[str, Any], names: tuple[str, str], lora: LoraSettings) -> None:
    if config.get("auto_mapping") or "auto_map" in config:
        raise Refused(f"{path}: auto_mapping asks for custom code; {_TRAIN_AGAIN}")
    if config.get("peft_type") != "LORA":
        raise IntegrityError(f"{path}: peft_type is {config.get('peft_type')!r}, expected 'LORA'; {_TRAIN_AGAIN}")
    stated = config.get("base_model_name_or_path")
    if not isinstance(stated, str) or stated.removesuffix("/") not in names:
        raise Refused(f"{path}: base_model_name_or_path is {stated!r}, expected {' or '.join(names)}; {_TRAIN_AGAIN}")
    targets = config.get("target_modules")
    found = (config.get("r"), config.get("lora_alpha"), sorted(targets) if isinstance(targets, list) else targets)
    expected = (lora.r, lora.alpha, sorted(lora.target_modules))
    for name, have, want in zip(("r", "lora_alpha", "target_modules"), found, expected, strict=True):
        if have != want:
            raise IntegrityError(f"{path}: {name} is {have}, the training recorded {want}; {_TRAIN_AGAIN}")


def _require_safetensors(folder: Path, names: set[str], ending: str, remedy: str) -> None:
    if any(name.endswith(ending) for name in names):
        return
    pickles = sorted(name for name in names if Path(name).suffix in PICKLES)
    if pickles:
        raise IntegrityError(f"{folder / pickles[0]}: pickle refused, only safetensors are loaded; {remedy}")
    raise InvalidInput(f"{folder}: no {ending.removeprefix('.')} file; {remedy}")


def _file_names(folder: Path) -> set[str]:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    for name in sorted(names):
        if not all(_PLAIN_NAME.fullmatch(part) for part in name.split("/")):
            raise InvalidInput(f"{folder}: file name {name!r:.140} is not plain ASCII; remove the file")
    return names


def _check_digest(folder: Path, recorded: str, remedy: str) -> None:
    found = tree_digest(manifest(folder))
    if found != recorded:
        raise IntegrityError(f"{folder}: sha256 is {found[:12]}, recorded is {recorded[:12]}; {remedy}")


def _named(base: BaseModelRef) -> str:
    return f"{base.name} at {base.revision} (sha256 {base.sha256[:12]})"
