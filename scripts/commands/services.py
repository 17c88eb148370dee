"""The model that params.yaml names, with its ledger, registry and Hub repository; for rollback, status and adoption."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient

from src.core.errors import IntegrityError, RunAgain, Undecided
from src.core.params import Params, load_params
from src.core.records import CONFIG, OUTPUT_DIR
from src.ledger.copies import COPY, MIRROR, STORE, refuse_altered, refuse_lost
from src.ledger.ports import Holders
from src.ledger.slots import HubRef, LedgerView, Slot
from src.promotion import rollback
from src.promotion.protocol import Services
from src.promotion.status import ObservedHub, ObservedState, releases
from utils import environment, json_utils, mlflow_utils, results
from utils.tracking.ledger import MlflowLedger
from utils.tracking.registry import MlflowRegistry

if TYPE_CHECKING:
    from utils.hub.repository import HubRepository

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ManagedModel:
    """A registered model and the services that keep it; repository is None if nothing is pushed."""

    params: Params
    client: MlflowClient
    ledger: MlflowLedger
    registry: MlflowRegistry
    repository: HubRepository | None

    @property
    def model_name(self) -> str:
        """The name in the registry, which the ledger's experiment has too."""
        return self.params.deployment.model_registry_name

    @property
    def services(self) -> Services:
        """The services as the promotion protocol takes them."""
        hub = None
        if self.repository:
            from scripts.commands.republish import hub_port

            hub = hub_port(self.repository, self.params, self.client)
        return Services(ledger=self.ledger, registry=self.registry, hub=hub, republication=republication)

    def copies(self) -> dict[str, list[str]]:
        """The slots in results/deployment/ledger.jsonl and on the Hub, by place; a place without any is left out."""
        kept = [line.slot.text() for line in results.read_ledger(OUTPUT_DIR, self.model_name)]
        found = {COPY: kept, MIRROR: (self.repository.mirrored() if self.repository else None) or []}
        return {place: texts for place, texts in found.items() if texts}

    def checked_view(self) -> LedgerView:
        """The ledger, once it is known to hold what the copy in results/deployment says. Raises as refuse_lost does."""
        check_store(self.ledger, self.model_name, OUTPUT_DIR)
        return self.ledger.view()

    def observe(self) -> ObservedState:
        """The ledger and what registry, Hub, deployment_info.json and the copies show, to be compared with it.

        Raises IntegrityError for a ledger that cannot be read, naming the altered slot and the way out.
        """
        copies = self.copies()  # before the ledger, which may only be longer then
        try:
            view = self.ledger.view()
        except IntegrityError:
            refuse_altered({STORE: self.ledger.texts(), **copies})
            raise
        holders = self.registry.holders()
        nobody = Holders(champion=None, previous=None, production=frozenset())
        expected = self.registry.expected(view.head, view.previous) if view.head else nobody
        return ObservedState(view=view, holders=holders, expected=expected, keys=self.registry.keys(),
                             pruned=frozenset(self.registry.pruned()), lost_weights=self.registry.lost_weights(),
                             hub=self._observe_hub(view, copies.get(MIRROR)), copy=copies.get(COPY),
                             info=results.last_info(OUTPUT_DIR))

    def require_weights(self, view: LedgerView, version: int) -> None:
        """Raise Refused if a version's weights were pruned, or may be at any time."""
        rollback.require_weights(view, version, self.registry, self.params.deployment.keep_versions)

    def record(self, view: LedgerView, slot: Slot | None, result: str) -> None:
        """Write the new champion to deployment_info.json, and the ledger's copy beside it.

        A tree without results/deployment is left alone.
        """
        facts = rollback.info(view, slot, model_name=self.model_name, result=result)
        if results.last_info(OUTPUT_DIR).get("champion", facts["champion"]) != facts["champion"]:
            json_utils.write_object(OUTPUT_DIR / results.INFO, facts)
        if OUTPUT_DIR.is_dir():
            results.write_ledger(OUTPUT_DIR, self.model_name, view, self.registry.identities)

    def _observe_hub(self, view: LedgerView, mirror: list[str] | None) -> ObservedHub | None:
        if self.repository is None:
            return None
        holds = view.head is None and self.repository.holds_release()
        state = self.repository.state()
        lost = (version for version, release in releases(view, self.repository.repo_id).items()
                if f"v{version}" not in state.tags and not self.repository.holds(release))
        return ObservedHub(self.repository.repo_id, state, holds_release=holds, mirror=mirror,
                           lost=frozenset(lost))


def managed_model(config: Path | None, *, skip_hf_push: bool, create: bool = True) -> ManagedModel:
    """The model of a params.yaml; with create=False an sqlite store that does not exist is not made.

    Raises InvalidParams, and Undecided if MLflow does not answer.
    """
    params = load_params(config or CONFIG)
    push = environment.will_push(params.deployment, skip_hf_push=skip_hf_push)
    client = mlflow_utils.connect(params.mlflow) if create else mlflow_utils.connect_to_read(params.mlflow)
    ledger = MlflowLedger(client, params.deployment.model_registry_name, params.mlflow.experiment_name)
    registry = registry_of(params, client, ledger, save=_nothing, run_id=str, tags=dict)
    if not push:
        return ManagedModel(params, client, ledger, registry, None)
    from utils.hub.repository import repository  # huggingface_hub: only a push pays for it

    return ManagedModel(params, client, ledger, registry, repository(params.deployment.huggingface))


def check_store(ledger: MlflowLedger, model_name: str, *folders: Path) -> None:
    """Compare MLflow's ledger with what these folders of records say of it. Raises as refuse_lost does."""
    said = [(results.read_ledger(folder, model_name), results.recorded_champion(folder, model_name))
            for folder in dict.fromkeys(folders)]
    store = ledger.texts()  # after the copies, so that it may only be longer
    for lines, recorded in said:
        refuse_lost(model_name, store, [line.slot.text() for line in lines], recorded)


def _nothing(_folder: Path) -> None:
    raise AssertionError("nothing is registered here")


def origin(reason: str | None, otherwise: str) -> rollback.Origin:
    """Who asks, and why; `otherwise` is recorded if no reason was given."""
    return rollback.Origin(
        actor=environment.actor(), reason=environment.clean_reason(reason) or otherwise,
        git_commit=environment.git_identity().commit, ci_url=environment.ci_url(),
        time=datetime.now(UTC).isoformat(timespec="seconds"))


def republication(view: LedgerView, release: HubRef) -> Slot:
    """The slot of a head that was published again; it names who did it."""
    return rollback.republication(view, release, origin(None, ""))


def registry_of(params: Params, client: MlflowClient, ledger: MlflowLedger, *, save: Callable[[Path], None],
                run_id: Callable[[], str], tags: Callable[[], Mapping[str, str]]) -> MlflowRegistry:
    """The registry of the model that params.yaml names; save, run_id and tags as for MlflowRegistry."""
    return MlflowRegistry(client, params.deployment.model_registry_name, save=save, run_id=run_id, tags=tags,
                          spent=lambda: rollback.prunable(ledger.view(), params.deployment.keep_versions))


def prune(params: Params, ledger: MlflowLedger, registry: MlflowRegistry) -> None:
    """Delete the weights beyond deployment.keep_versions; what fails is left to the next deployment."""
    if params.deployment.keep_versions:
        try:
            done = rollback.prune(ledger, registry, params.deployment.keep_versions)
        except (Undecided, RunAgain) as error:
            logger.warning("old weights are not all pruned, the next deployment goes on: %s", error)
            return
        if done:
            logger.info("pruned the weights of versions %s", ", ".join(map(str, done)))
