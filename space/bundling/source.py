"""The release that a bundle is made of, from a folder or from the Hub, and the export of its weights."""

import importlib.util
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from files import foreign_weights, sha256
from serving.identity import CHAMPION

_CARD_KEY = re.compile(r"\| promotion key \| `([0-9a-f]{64})` \|")
_CARD_DIGEST = re.compile(r"\| model digest \| `([0-9a-f]{64})` \|")
_VERSION_TAG = re.compile(r"v([1-9][0-9]*)")
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md"]
logger = logging.getLogger(__name__)
COMPRESSED = ("int8", "int4")
_GROUP = 64  # weights that share a scale in int4; divides the widths of Llama models and of the pocket model


class SourceError(Exception):
    """There is no release that can be served; the text says why."""

    code = 2


class ForeignWeights(SourceError):
    """The release asks for weights from outside of its folder."""

    code = 7


@dataclass(frozen=True)
class Source:
    """A release on this disk and its identity; None for what nobody recorded."""

    folder: Path
    model: str
    version: int | None
    commit: str | None
    model_digest: str | None


def find(model: str, version: int | None) -> Source:
    """A folder is taken as it is, NAME[@REVISION] is fetched from the Hub; raises SourceError."""
    source = _local(Path(model)) if Path(model).is_dir() else _from_hub(model)
    _check(source.folder)
    return source if version is None else replace(source, version=version)


def _local(folder: Path) -> Source:
    """Version and commit are known if the deployment record beside the folder names its model as the champion.

    The model that the record itself is about may be another one, a challenger that was not promoted.
    """
    digest, stated, key = model_digest(folder), _object(folder / CHAMPION), _promotion_key(folder)
    told = _object(folder.resolve().parent / "deployment" / "deployment_info.json")
    champion = (told.get("last_known") or told).get("champion") or {}  # last_known: by a deployment that failed
    if key is None or champion.get("key") != key:
        # A release and a record from before there were keys in them; version is None if it was not promoted.
        champion = {"version": told.get("version")} if digest and told.get("model_digest") == digest else {}
    name = stated.get("model_name") or (told.get("model_name") if champion else None) or folder.resolve().name
    commit = (told.get("hub") or {}).get("commit") if champion else None
    return Source(folder, name, champion.get("version"), commit, digest)


def _promotion_key(folder: Path) -> str | None:
    """What champion.json states, or the card of a release from before there was that file."""
    if key := _object(folder / CHAMPION).get("key"):
        return str(key)
    card = folder / "README.md"
    found = _CARD_KEY.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    return found[1] if found else None


def _object(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file; raises SourceError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise SourceError(f"{path}: is no JSON: {error}; assemble or fetch the release again") from error
    return found if isinstance(found, dict) else {}


def _from_hub(model: str) -> Source:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name, _, revision = model.partition("@")
    api = HfApi()
    http = importlib.import_module("httpx2" if importlib.util.find_spec("httpx2") else "httpx")  # the builder's
    logging.getLogger(http.__name__).setLevel(logging.WARNING)  # a line for each request
    try:
        commit = api.model_info(name, revision=revision or None).sha
        tags = [tag.name for tag in api.list_repo_refs(name).tags if tag.target_commit == commit]
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=_PATTERNS))
    except (OSError, HfHubHTTPError, HFValidationError, http.HTTPError) as error:
        raise SourceError(f"{model}: is no folder here and cannot be fetched from the Hub: {error}") from error
    versions = sorted(int(found[1]) for tag in tags if (found := _VERSION_TAG.fullmatch(tag)))
    return Source(folder, name, versions[-1] if versions else None, commit, model_digest(folder))


def model_digest(folder: Path) -> str | None:
    """The model digest that a release's folder states, None if it states none; raises SourceError."""
    def read(name: str) -> str | None:
        return (folder / name).read_text(encoding="utf-8") if (folder / name).is_file() else None

    return stated_digest(read, str(folder))


def stated_digest(read: Callable[[str], str | None], where: str) -> str | None:
    """The model digest that a release states, None if it states none; raises SourceError.

    champion.json has it. A release made before there was that file has it in a table of its model card.
    """
    text = read(CHAMPION)
    if text is None:
        found = _CARD_DIGEST.search(read("README.md") or "")
        return found[1] if found else None
    try:
        digest = json.loads(text)["model_digest"]
    except (ValueError, LookupError, TypeError) as error:
        raise SourceError(f"{where}: {CHAMPION} states no model_digest; publish the release again") from error
    return str(digest)


def _check(folder: Path) -> None:
    """Raise SourceError unless the files of a chat model are there and match manifest.json, if there is one."""
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise SourceError(f"{folder}: has no {name}, so it is no release; `make repro` makes results/release")
    if (folder / "adapter_config.json").is_file():
        raise SourceError(f"{folder}: has an unmerged adapter; a bundle would be of the base model; merge it")
    if foreign := foreign_weights(folder):
        raise ForeignWeights(f"{foreign[0]}, which is no file of this folder; assemble or fetch the release again")
    manifest = folder / "manifest.json"
    stated: dict[str, str] = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    for name, digest in stated.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise SourceError(f"{folder / name}: is not what manifest.json says; assemble or fetch the release again")


class ExportError(Exception):
    """The weights could not be compressed; the text says why."""


def lacking() -> list[str]:
    """The packages that compression needs and this environment does not have."""
    return [name for name in ("torch", "optimum.intel", "nncf", "openvino") if not _is_there(name)]


def compress(release: Path, bundle: Path, precision: str) -> None:
    """Write the weights in a precision into a folder of its name; raises ExportError."""
    from nncf.errors import InvalidGroupSizeError
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    bits = {"bits": 8} if precision == "int8" else {"bits": 4, "group_size": _GROUP}
    try:
        OVModelForCausalLM.from_pretrained(
            str(release), export=True, compile=False, local_files_only=True,
            quantization_config=OVWeightQuantizationConfig(**bits)).save_pretrained(bundle / precision)
    # What exporters raise for what they lack, and nncf for a model narrower than a group.
    except (RuntimeError, ValueError, KeyError, ImportError, InvalidGroupSizeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ExportError(f"{release}: cannot be compressed to {precision}: {first}") from error


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
