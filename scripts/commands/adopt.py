"""Repair and adoption: restore the ledger from its mirror, and take a champion from outside of it into it."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.commands.services import ManagedModel, origin, prune, registry_of
from src.core.errors import IntegrityError, Refused, RunAgain
from src.core.records import ModelIdentity, canonical_json, digest_of, manifest, tree_digest
from src.ledger.slots import HubRef, LedgerView, Slot, parse_slots
from src.promotion.protocol import Step, append, reconcile
from src.promotion.rollback import UnrecordedChampion, adoption
from src.promotion.status import highest_release, versions
from utils.hub.repository import HubRepository
from utils.huggingface_utils import fetch_snapshot
from utils.mlflow_utils import mlflow_errors
from utils.tracking import tag
from utils.tracking.deployments import DeploymentRun, Journal

logger = logging.getLogger("champion")
_ADOPTED = "adopted"  # stands for the score contract in the key of a model that was not made here
Save = Callable[[Path, Path], None]


def repair(model: ManagedModel) -> None:
    """Restore a lost ledger from the mirror, and make registry, Hub, mirror and record follow its head."""
    _restore(model, trusting=False)
    view = reconcile(model.services, Journal("repair").note, Step.PREFLIGHT)
    prune(model.params, model.ledger, model.registry)
    model.record(view, None, "repaired")


def adopt(model: ManagedModel, reason: str | None, save_flavour: Save) -> None:
    """Take the champion that the registry shows, else the release on the Hub, into the ledger as its head."""
    found = _outside(model, _restore(model, trusting=True), save_flavour)
    by = origin(reason, "adopted: it stood outside of the ledger")

    def wanted(now: LedgerView) -> Slot | None:
        slot = adoption(now, found, by)
        if slot is not None:
            model.require_weights(now, slot.version)
        return slot

    view, slot = append(model.services, Journal("adopt").note, wanted)
    model.record(view, slot, "adopted")


def _restore(model: ManagedModel, *, trusting: bool) -> LedgerView:
    """Claim again the slots that only the mirror has; unless trusting, refuse if the registry says otherwise."""
    model.ledger.renew()
    view, lines = model.ledger.view(), model.repository.mirrored() if model.repository else None
    try:
        mirrored = parse_slots(lines or [])
    except IntegrityError as error:
        raise IntegrityError(f"mirror: {str(error).partition(';')[0]}; the Hub's branch `ledger` was altered, see "
                             "docs/status.md") from None
    missing = mirrored.slots[len(view.slots):]
    if not missing or mirrored.slots[: len(view.slots)] != view.slots:
        return view
    if not trusting:
        _refuse_contradiction(model, mirrored)
    for slot in missing:
        if not model.ledger.claim(slot):
            raise RunAgain(f"ledger: slot {slot.number} was taken while it was restored; look with "
                           "`python scripts/status_script.py`")
    logger.warning("restored %d slots of the ledger from its mirror", len(missing))
    return mirrored


def _refuse_contradiction(model: ManagedModel, mirrored: LedgerView) -> None:
    head, shown, keys = mirrored.slots[-1], model.registry.holders().champion, model.registry.keys()
    if shown not in (None, head.version):
        raise Refused(f"the registry's champion is version {shown}, the mirror's version {head.version}; restore "
                      "MLflow's database from a backup, or `--adopt` to go on from the registry's")
    if keys.get(head.version) != head.key:
        raise Refused(f"the registry does not hold version {head.version}, the mirror's champion; restore MLflow's "
                      "database from a backup, or `--adopt` to go on from the release on the Hub")


def _outside(model: ManagedModel, view: LedgerView, save_flavour: Save) -> UnrecordedChampion:
    holders, keys, head = model.registry.holders(), model.registry.keys(), view.head
    if holders.champion is not None:
        return _registered(model, holders.champion)
    if head is not None and head.version in keys:
        raise Refused(f"the registry shows no other champion than the ledger's, version {head.version}; `--repair` "
                      "restores its alias")
    if len(holders.production) > 1:
        raise Refused(f"{versions(holders.production)} are in stage Production and no alias champion decides; set it "
                      f"on one of them, and run it again")
    if holders.production:
        return _registered(model, next(iter(holders.production)))
    return _released(model, view, save_flavour)


def _registered(model: ManagedModel, version: int) -> UnrecordedChampion:
    """A version as it is; one that was not made here gets the tags that its evaluation needs."""
    source, tags = model.registry.described(version)
    if tag.IDENTITY not in tags:
        made = {**_tags(_stand_in(model, [model.model_name, version, source])), **tags}
        model.registry.tag(version, {name: value for name, value in made.items() if name not in tags})
        tags = made
    identity = ModelIdentity.model_validate_json(tags[tag.IDENTITY])
    return UnrecordedChampion(
        version, key=tags.get(tag.KEY, identity.key(_ADOPTED)), model_digest=identity.digest(),
        score=tags.get(tag.SCORE), contract=tags.get(tag.CONTRACT), evaluation_run=tags.get(tag.EVALUATION_RUN),
        hub=_tagged(model, version))


def _tagged(model: ManagedModel, version: int) -> HubRef | None:
    """The release that the Hub keeps under this version's tag."""
    if model.repository is None:
        return None
    commit = model.repository.state().tags.get(f"v{version}")
    files = model.repository.tree(commit) if commit else None
    return HubRef(repo=model.repository.repo_id, commit=commit, tree=tree_digest(files)) if commit and files else None


def _released(model: ManagedModel, view: LedgerView, save_flavour: Save) -> UnrecordedChampion:
    """The Hub's main branch, registered under a number that neither its tags nor the ledger have used."""
    repository = model.repository
    state = repository.state() if repository else None
    if repository is None or state is None or state.head is None or state.tree is None:
        raise Refused("there is nothing to adopt: the registry shows no champion, and no Hub repository holds a model")
    commit, identity = state.head, _stand_in(model, [repository.repo_id, state.tree])
    key, params = identity.key(_ADOPTED), model.params
    run = DeploymentRun(model.client, params.mlflow.experiment_name, model.model_name, key)
    registry = registry_of(
        params, model.client, model.ledger, run_id=run.id, tags=lambda: _tags(identity),
        save=lambda folder: _fetch_and_save(repository, commit, folder, save_flavour))
    used = max([highest_release(state.tags), *(slot.version for slot in view.slots)])
    if key not in registry.keys().values():
        registry.use_up(used)
    version = registry.register(key)
    with mlflow_errors():
        model.client.set_tag(run.id(), tag.DECISION, _ADOPTED)
        model.client.set_terminated(run.id())
    return UnrecordedChampion(
        version, key=key, model_digest=identity.digest(), score=None, contract=None, evaluation_run=None,
        hub=HubRef(repo=repository.repo_id, commit=commit, tree=state.tree))


def _fetch_and_save(repository: HubRepository, commit: str, folder: Path, save_flavour: Save) -> None:
    with TemporaryDirectory() as scratch:
        fetched = Path(scratch, "release")
        fetch_snapshot(repository.repo_id, commit, fetched)
        there = repository.tree(commit) or {}
        if odd := [name for name, sha256 in manifest(fetched).items() if there.get(name) != sha256]:
            raise IntegrityError(f"{repository.repo_id}: {odd[0]} arrived with other bytes than it has; run it again")
        shutil.rmtree(folder, ignore_errors=True)
        save_flavour(fetched, folder)


def _stand_in(model: ManagedModel, what: list[object]) -> ModelIdentity:
    """An identity for a model whose adapter and base nobody recorded: equal for the same files."""
    digest = digest_of(what)
    return ModelIdentity(adapter_sha256=digest, base_name=_ADOPTED, base_revision="none", base_sha256=digest,
                         dtype=model.params.model.release_dtype, safe_merge=True)


def _tags(identity: ModelIdentity) -> dict[str, str]:
    return {tag.IDENTITY: canonical_json(identity.model_dump(mode="json")), tag.MODEL_DIGEST: identity.digest(),
            tag.KEY: identity.key(_ADOPTED)}
