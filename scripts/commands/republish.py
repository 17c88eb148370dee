"""The release of a champion that the Hub lacks: results/release if it is that one, else made from the registry."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import yaml
from mlflow import MlflowClient

from src.core.errors import IntegrityError, Undecided
from src.core.params import HuggingFaceParams, Params
from src.core.records import CHAMPION_FILE, RELEASE_DIR, ChampionFile, manifest, tree_digest
from src.ledger.slots import Slot
from src.promotion.card import standing_body
from src.promotion.release import CARD, EVAL_RESULTS, MANIFEST, complete, temporary
from utils.hub.card import render_plain
from utils.hub.repository import HubPort, HubRepository
from utils.mlflow_utils import mlflow_errors
from utils.tracking import registry, tag

logger = logging.getLogger("champion")


def hub_port(repository: HubRepository, params: Params, client: MlflowClient) -> HubPort:
    """The Hub as the promotion protocol sees it, for the model that params.yaml names."""
    return HubPort(repository, RELEASE_DIR, partial(standing_release, client, params))


@contextmanager
def standing_release(client: MlflowClient, params: Params, slot: Slot) -> Iterator[tuple[Path, str] | None]:
    """A folder with the release of a slot's version, and its tree digest; None, with a warning, if there is none.

    Others can write to results/release. It is taken only if its digest is the one in the ledger, or the one that was
    recorded with the registered version. Everything else is made from the registry's weights, without torch.
    """
    folder = temporary(RELEASE_DIR.parent)
    try:
        yield _found(client, params, slot, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _found(client: MlflowClient, params: Params, slot: Slot, scratch: Path) -> tuple[Path, str] | None:
    name, hub = params.deployment.model_registry_name, params.deployment.huggingface
    try:
        if _is_proved(client, name, slot):
            release = _for_repository(RELEASE_DIR, hub.model_id, scratch)
        else:
            logger.info("making the release of version %d from the registry's weights", slot.version)
            release = _from_registry(client, name, slot, hub, scratch)
        return release, tree_digest(manifest(release))
    except (Undecided, IntegrityError, FileNotFoundError, NotADirectoryError) as error:
        logger.warning("version %d is not published to %s: its release cannot be made again: %s", slot.version,
                       hub.model_id, error)
        return None


def _is_proved(client: MlflowClient, name: str, slot: Slot) -> bool:
    if not RELEASE_DIR.is_dir() or not any(RELEASE_DIR.iterdir()):
        return False
    with mlflow_errors():
        tags = client.get_model_version(name, str(slot.version)).tags
    known = {slot.hub.tree if slot.hub else None, tags.get(tag.RELEASE) if tags.get(tag.KEY) == slot.key else None}
    return tree_digest(manifest(RELEASE_DIR)) in known


def _for_repository(release: Path, repo_id: str, scratch: Path) -> Path:
    """The release, or a copy whose card names this repository if it was written for another one."""
    card = release / CARD
    header = card.read_text("utf-8").split("---\n")[1:2] if card.is_file() else []
    index = (yaml.safe_load(header[0]) or {}).get("model-index") if header else None
    before = index[0].get("name") if index else repo_id
    if before == repo_id:
        return release
    copy = scratch / "release"
    shutil.copytree(release, copy)
    texts = {path: (copy / path).read_text("utf-8").replace(before, repo_id) for path in (CARD, EVAL_RESULTS)
             if (copy / path).is_file()}
    (copy / MANIFEST).unlink()
    complete(copy, texts)
    return copy


def _from_registry(client: MlflowClient, name: str, slot: Slot, hub: HuggingFaceParams, scratch: Path) -> Path:
    release, identity = registry.fetch_version(client, name, slot.version, scratch)
    if identity.digest() != slot.model_digest:
        raise IntegrityError(f"{name} version {slot.version} is not the model that the ledger promoted")
    texts = {}
    if slot.metrics and slot.contract:
        champion = ChampionFile(format=1, key=slot.key, model_digest=slot.model_digest, model_name=name,
                                contract=slot.contract, metrics=slot.metrics, base_model=identity.base_name)
        texts[CHAMPION_FILE] = champion.text()
    if hub.create_model_card:
        base = identity.base_name if identity.base_revision != "none" else None
        texts[CARD] = render_plain(hub.model_id, hub.license or None, base,
                                   standing_body(hub.model_id, slot, identity.base_name, name))
    complete(release, texts)
    return release
