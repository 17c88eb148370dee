"""What status_script changes: the ledger is restored from its mirror, and what stands outside of it is taken in."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.commands.services import Standing, origin, prune, registry_of
from src.core.errors import IntegrityError, Refused, RunAgain
from src.core.records import ModelIdentity, canonical_json, digest_of, manifest, tree_digest
from src.ledger.slots import HubRef, LedgerView, Slot, parse_slots
from src.promotion.protocol import Step, append, reconcile
from src.promotion.rollback import Found, adoption
from src.promotion.status import highest_release, versions
from utils.huggingface_utils import fetch_snapshot
from utils.mlflow_utils import CONTRACT, DECISION, EVALUATION_RUN, IDENTITY, KEY, MODEL_DIGEST, SCORE, mlflow_errors
from utils.tracking.deployments import DeploymentRun, Journal

logger = logging.getLogger("champion")

_ADOPTED = "adopted"  # stands in for the score contract in the key of a model that was not made here
Save = Callable[[Path, Path], None]


def repair(stands: Standing) -> None:
    """Restore a lost ledger from the mirror, and make registry, Hub, mirror and record follow its head."""
    _restore(stands, trusting=False)
    view = reconcile(stands.services, Journal("repair").note, Step.PREFLIGHT)
    prune(stands.params, stands.ledger, stands.registry)
    stands.record(view, None, "repaired")


def adopt(stands: Standing, reason: str | None, save_flavour: Save) -> None:
    """Take the champion that the registry shows, else the release on the Hub, into the ledger as its head."""
    found = _outside(stands, _restore(stands, trusting=True), save_flavour)
    by = origin(reason, "adopted: it stood outside of the ledger")

    def wanted(now: LedgerView) -> Slot | None:
        slot = adoption(now, found, by)
        if slot is not None:
            stands.require_weights(now, slot.version)
        return slot

    view, slot = append(stands.services, Journal("adopt").note, wanted)
    stands.record(view, slot, "adopted")


def _restore(stands: Standing, *, trusting: bool) -> LedgerView:
    """Claim again the slots that only the mirror has; unless trusting, refuse where the registry says otherwise."""
    stands.ledger.renew()
    view, lines = stands.ledger.view(), stands.repository.mirrored() if stands.repository else None
    try:
        mirrored = parse_slots(lines or [])
    except IntegrityError as error:
        raise IntegrityError(f"mirror: {str(error).partition(';')[0]}; the Hub's branch `ledger` was altered, see "
                             "docs/status.md") from None
    missing = mirrored.slots[len(view.slots):]
    if not missing or mirrored.slots[: len(view.slots)] != view.slots:
        return view
    if not trusting:
        _refuse_contradiction(stands, mirrored)
    for slot in missing:
        if not stands.ledger.claim(slot):
            raise RunAgain(f"ledger: slot {slot.number} was taken while it was restored; look with "
                           "`python scripts/status_script.py`")
    logger.warning("restored %d slots of the ledger from its mirror", len(missing))
    return mirrored


def _refuse_contradiction(stands: Standing, mirrored: LedgerView) -> None:
    head, shown, keys = mirrored.slots[-1], stands.registry.holders().champion, stands.registry.keys()
    if shown not in (None, head.version):
        raise Refused(f"the registry's champion is version {shown}, the mirror's version {head.version}; restore "
                      "MLflow's database from a backup, or `--adopt` to go on from the registry's")
    if keys.get(head.version) != head.key:
        raise Refused(f"the registry does not hold version {head.version}, the mirror's champion; restore MLflow's "
                      "database from a backup, or `--adopt` to go on from the release on the Hub")


def _outside(stands: Standing, view: LedgerView, save_flavour: Save) -> Found:
    holders, keys, head = stands.registry.holders(), stands.registry.keys(), view.head
    if holders.champion is not None:
        return _registered(stands, holders.champion)
    if head is not None and head.version in keys:
        raise Refused(f"the registry shows no other champion than the ledger's, version {head.version}; `--repair` "
                      "restores its alias")
    if len(holders.production) > 1:
        raise Refused(f"{versions(holders.production)} are in stage Production and no alias champion decides; set it "
                      f"on one of them, and run it again")
    if holders.production:
        return _registered(stands, next(iter(holders.production)))
    return _released(stands, view, save_flavour)


def _registered(stands: Standing, version: int) -> Found:
    """A version as it is; one that was not made here gets the tags that its evaluation needs."""
    source, tags = stands.registry.described(version)
    if IDENTITY not in tags:
        made = {**_tags(_stand_in(stands, [stands.model_name, version, source])), **tags}
        stands.registry.tag(version, {name: value for name, value in made.items() if name not in tags})
        tags = made
    identity = ModelIdentity.model_validate_json(tags[IDENTITY])
    return Found(version, key=tags.get(KEY, identity.key(_ADOPTED)), model_digest=identity.digest(),
                 score=tags.get(SCORE), contract=tags.get(CONTRACT),
                 evaluation_run=tags.get(EVALUATION_RUN), hub=_tagged(stands, version))


def _tagged(stands: Standing, version: int) -> HubRef | None:
    """The release that the Hub keeps under this version's tag."""
    if stands.repository is None:
        return None
    commit = stands.repository.state().tags.get(f"v{version}")
    files = stands.repository.tree(commit) if commit else None
    return HubRef(repo=stands.repository.repo_id, commit=commit, tree=tree_digest(files)) if commit and files else None


def _released(stands: Standing, view: LedgerView, save_flavour: Save) -> Found:
    """The Hub's main, registered under a number that neither its tags nor the ledger have used."""
    state = stands.repository.state() if stands.repository else None
    if stands.repository is None or state is None or state.head is None or state.tree is None:
        raise Refused("there is nothing to adopt: the registry shows no champion, and no Hub repository holds a model")
    repo, commit = stands.repository.repo_id, state.head
    hub = HubRef(repo=repo, commit=commit, tree=state.tree)
    identity = _stand_in(stands, [repo, state.tree])
    key, params = identity.key(_ADOPTED), stands.params
    run = DeploymentRun(stands.client, params.mlflow.experiment_name, stands.model_name, key)
    registry = registry_of(
        params, stands.client, stands.ledger, run_id=run.id, tags=lambda: _tags(identity),
        save=lambda folder: _fetch_and_save(stands, commit, folder, save_flavour))
    used = max([highest_release(state.tags), *(slot.version for slot in view.slots)])
    if key not in registry.keys().values():
        registry.use_up(used)
    version = registry.register(key)
    with mlflow_errors():
        stands.client.set_tag(run.id(), DECISION, _ADOPTED)
        stands.client.set_terminated(run.id())
    return Found(version, key=key, model_digest=identity.digest(), score=None, contract=None, evaluation_run=None,
                 hub=hub)


def _fetch_and_save(stands: Standing, commit: str, folder: Path, save_flavour: Save) -> None:
    repository = stands.repository
    if repository is None:
        raise TypeError("nothing is fetched without a Hub")
    with TemporaryDirectory() as scratch:
        fetched = Path(scratch, "release")
        fetch_snapshot(repository.repo_id, commit, fetched)
        there = repository.tree(commit) or {}
        odd = [name for name, sha256 in manifest(fetched).items() if there.get(name) != sha256]
        if odd:
            raise IntegrityError(f"{repository.repo_id}: {odd[0]} arrived with other bytes than it has; run it again")
        shutil.rmtree(folder, ignore_errors=True)
        save_flavour(fetched, folder)


def _stand_in(stands: Standing, what: list[object]) -> ModelIdentity:
    """An identity for a model whose adapter and base nobody recorded: equal for the same files."""
    digest = digest_of(what)
    return ModelIdentity(adapter_sha256=digest, base_name=_ADOPTED, base_revision="none", base_sha256=digest,
                         dtype=stands.params.model.release_dtype, safe_merge=True)


def _tags(identity: ModelIdentity) -> dict[str, str]:
    return {IDENTITY: canonical_json(identity.model_dump(mode="json")), MODEL_DIGEST: identity.digest(),
            KEY: identity.key(_ADOPTED)}
