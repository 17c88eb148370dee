"""Repair and adoption: restore the ledger from its copies, and take a champion from outside of it into it."""

import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.commands.services import ManagedModel, origin, prune, registry_of
from src.core.errors import IntegrityError, InvalidInput, Refused, RunAgain
from src.core.records import (
    CHAMPION_FILE,
    EVALUATION_RESULTS,
    OUTPUT_DIR,
    RELEASE_DIR,
    ChampionFile,
    EvaluationReport,
    ModelIdentity,
    canonical_json,
    digest_of,
    manifest,
    tree_digest,
)
from src.ledger.copies import STORE, choose, refuse_added, refuse_altered, words
from src.ledger.slots import HubRef, LedgerView, Slot, parse_slots
from src.promotion.protocol import Step, append, reconcile
from src.promotion.release import check_release
from src.promotion.rollback import UnrecordedChampion, adoption
from src.promotion.status import highest_release, releases, versions
from utils import environment, results
from utils.hub.repository import HubRepository
from utils.huggingface_utils import fetch_snapshot
from utils.mlflow_utils import mlflow_errors
from utils.tracking import tag
from utils.tracking.deployments import DeploymentRun, Journal

logger = logging.getLogger("champion")
_ADOPTED = "adopted"  # stands for the score contract in the key of a model that was not made here
_ELSE = ("restore MLflow's database from a backup, or set the alias champion on the version to be adopted and "
         "`--adopt` again, or give deployment.model_registry_name a value of your own")
Save = Callable[[Path, Path], None]


def repair(model: ManagedModel) -> None:
    """Restore a lost ledger from a copy, and make registry, Hub, mirror, copy and record follow its head."""
    _restore(model, trusting=False)
    model.checked_view()  # nothing follows from an empty ledger, least of all a record without a champion
    view = reconcile(model.services, Journal("repair").note, Step.PREFLIGHT)
    _restore_tags(model, view)
    prune(model.params, model.ledger, model.registry)
    model.record(view, None, "repaired")


def _restore_tags(model: ManagedModel, view: LedgerView) -> None:
    if model.repository is None:
        return
    known = {f"v{version}": release for version, release in releases(view, model.repository.repo_id).items()}
    if done := model.repository.restore_tags(known):
        logger.info("%s: set the tags %s again", model.repository.repo_id, ", ".join(done))


def adopt(model: ManagedModel, reason: str | None, save_flavour: Save) -> None:
    """Restore a lost or altered ledger from a copy, then add the champion that the registry or the Hub shows to it."""
    rewritten = _restore(model, trusting=True)
    view = model.ledger.view()
    registered = _restore_head(model, view, save_flavour)
    found = _outside(model, view, save_flavour, is_new=rewritten or registered)
    by = origin(reason, "adopted: it stood outside of the ledger")

    def wanted(now: LedgerView) -> Slot | None:
        slot = adoption(now, found, by) if found else None
        if slot is not None:
            model.require_weights(now, slot.version)
        return slot

    after, slot = append(model.services, Journal("adopt").note, wanted)
    model.record(after, slot, "adopted")


def _restore(model: ManagedModel, *, trusting: bool) -> bool:
    """Write the slots again that only a copy has; returns whether there were any.

    Raises IntegrityError if ledger and copies differ in a slot; if trusting, an altered ledger gives way to the intact
    copy, and nothing is asked of the registry, which may have been lost too.
    """
    copies = model.copies()
    model.ledger.renew()
    store = model.ledger.texts()
    ledgers = {place: texts for place, texts in ({STORE: store} | copies).items() if texts}
    try:
        refuse_altered(ledgers)
    except IntegrityError:
        if not trusting:
            raise
        texts = choose(store, copies)
        _refuse_stranger(model, parse_slots(texts))
        _supersede(model, store, texts)
        return True
    place, longest = max(ledgers.items(), key=lambda item: len(item[1]), default=(STORE, store))
    missing, whole = longest[len(store):], parse_slots(longest)
    if missing and not trusting:
        refuse_added(ledgers)
        _refuse_contradiction(model, whole)
    _refuse_stranger(model, whole)
    for slot in whole.slots[len(store):]:
        logger.warning("taking over from %s: %s", place, words(slot.text()))
        if not model.ledger.claim(slot):
            raise RunAgain(f"ledger: slot {slot.number} was taken while it was restored; look with "
                           "`champion status`")
    if missing:
        logger.warning("restored %d slots of the ledger from %s", len(missing), place)
    return bool(missing)


def _supersede(model: ManagedModel, store: list[str], texts: list[str]) -> None:
    if left := range(len(texts) + 1, len(store) + 1):
        logger.warning("slots %d to %d of the altered ledger do not continue the intact copy and are left out; look at "
                       "them in its run, and block by hand what they blocked (champion rollback --block)",
                       left[0], left[-1])
    for number, text in enumerate(texts):
        if text not in store[number:number + 1]:
            logger.warning("taking over from the intact copy: %s", words(text))
    model.ledger.supersede(texts, environment.actor())


def _refuse_stranger(model: ManagedModel, ledger: LedgerView) -> None:
    """Refuse a registry whose champion would be another model that got its number."""
    head, holders, registry = ledger.head, model.registry.holders(), model.registry
    if head is None or (holders.champion or head.version) != head.version or head.version in registry.lost_weights():
        return
    if registry.keys().get(head.version, head.key) != head.key:
        raise Refused(f"version {head.version} is the champion of the ledger, and another model in this registry; "
                      f"{_ELSE}")


def _refuse_contradiction(model: ManagedModel, copy: LedgerView) -> None:
    head, shown, keys = copy.slots[-1], model.registry.holders().champion, model.registry.keys()
    if shown not in (None, head.version):
        raise Refused(f"the registry's champion is version {shown}, that of the ledger's copy version {head.version}; "
                      "restore MLflow's database from a backup, or `--adopt` to go on from the registry's")
    if keys.get(head.version) != head.key:
        raise Refused(f"the registry does not hold version {head.version}, the champion of the ledger's copy; restore "
                      "MLflow's database from a backup, or `--adopt` to go on in this one")


def _restore_head(model: ManagedModel, view: LedgerView, save_flavour: Save) -> bool:
    """Make the head's version again in a registry that was lost, under its number, with the weights that are left.

    Returns whether it was made. A version that was made before without its weights gets them if they are found now.
    """
    head, holders = view.head, model.registry.holders()
    if head is None or (holders.champion or head.version) != head.version:
        return False
    made = False
    keys = model.registry.keys()
    if (head.version not in keys and not holders.production) or model.registry.restoring():
        run = DeploymentRun(model.client, model.params.mlflow.experiment_name, model.model_name, head.key)
        registry = registry_of(model.params, model.client, model.ledger, save=lambda _: None, run_id=run.id, tags=dict)
        made = registry.restore(head.version, _tags_of(model, head), max(slot.version for slot in view.slots))
        _end(model, run)
    if head.version in model.registry.lost_weights():
        if save := _weights_of(model, head, save_flavour):
            model.registry.put_weights(head.version, save)
        else:
            logger.warning("version %d: its weights are neither in %s nor on the Hub, so it is registered without them",
                           head.version, RELEASE_DIR)
    return made


def _tags_of(model: ManagedModel, slot: Slot) -> dict[str, str]:
    """The tags of a slot's version; its identity, without which it cannot be evaluated, only if it is known here."""
    known = [line.identity for line in results.read_ledger(OUTPUT_DIR, model.model_name) if line.identity]
    with contextlib.suppress(InvalidInput):
        known.append(EvaluationReport.load(EVALUATION_RESULTS.with_name("report.json")).model)
    tags = {tag.KEY: slot.key, tag.MODEL_DIGEST: slot.model_digest, tag.SCORE: slot.score, tag.CONTRACT: slot.contract,
            tag.EVALUATION_RUN: slot.evaluation_run}
    identity = next((each for each in known if each.digest() == slot.model_digest), None)
    if identity is None:
        logger.warning("version %d: results/ does not say from which adapter and base it was made, so it cannot be "
                       "evaluated again", slot.version)
    else:
        tags[tag.IDENTITY] = canonical_json(identity.model_dump(mode="json"))
    return {name: value for name, value in tags.items() if value is not None}


def _weights_of(model: ManagedModel, slot: Slot, save_flavour: Save) -> Callable[[Path], None] | None:
    """How to save the weights of a slot's release: from results/release, else from the Hub; None if both lack them."""
    if _is_released_here(slot):
        return lambda folder: save_flavour(RELEASE_DIR, folder)
    repository, hub = model.repository, slot.hub
    if repository is None or hub is None or hub.repo != repository.repo_id:
        return None
    files = repository.tree(hub.commit)
    if not files or tree_digest(files) != hub.tree:
        return None
    return lambda folder: _fetch_and_save(repository, hub.commit, folder, save_flavour)


def _is_released_here(slot: Slot) -> bool:
    try:
        check_release(RELEASE_DIR)
        champion = ChampionFile.load(RELEASE_DIR / CHAMPION_FILE)
    except (InvalidInput, IntegrityError):
        return False
    same_tree = slot.hub is None or tree_digest(manifest(RELEASE_DIR)) == slot.hub.tree
    return same_tree and (champion.key, champion.model_digest) == (slot.key, slot.model_digest)


def _outside(model: ManagedModel, view: LedgerView, save_flavour: Save, *, is_new: bool) -> UnrecordedChampion | None:
    """The champion outside of the ledger; None if there is none, after a ledger was restored."""
    holders, keys, head = model.registry.holders(), model.registry.keys(), view.head
    if holders.champion is not None:
        is_head = head is not None and head.version == holders.champion
        return None if is_head else _registered(model, holders.champion)
    if head is not None and head.version in keys:
        if is_new:
            return None
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
        raise Refused("there is nothing to adopt: the registry shows no champion, and no Hub repository holds a model; "
                      f"if there was a champion, {_ELSE}")
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
    _end(model, run)
    return UnrecordedChampion(
        version, key=key, model_digest=identity.digest(), score=None, contract=None, evaluation_run=None,
        hub=HubRef(repo=repository.repo_id, commit=commit, tree=state.tree))


def _end(model: ManagedModel, run: DeploymentRun) -> None:
    with mlflow_errors():
        model.client.set_tag(run.id(), tag.DECISION, _ADOPTED)
        model.client.set_terminated(run.id())


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
