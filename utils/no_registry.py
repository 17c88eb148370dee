"""What stands in for the Model Registry on a server that has none (deployment.registry: none).

A version's number is in the ledger, its files are with the deployment run that promoted it. There are no aliases and
no stages: the ledger's head is the champion, and the Hub shows it.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from mlflow import MlflowClient

from src.core.errors import Undecided
from src.core.records import ModelIdentity
from src.ledger.ports import Holders, Ledger
from src.ledger.slots import Slot
from utils.mlflow_utils import KEY, KIND, fetch_files, find_experiment, talking
from utils.tracking.registry import ARTIFACT, IDENTITY, keep_model, plain

logger = logging.getLogger(__name__)

NOBODY = Holders(champion=None, previous=None, production=frozenset())


class NoRegistry:
    """Implements src.ledger.ports.Registry; what save, run_id and tags are, MlflowRegistry tells."""

    def __init__(self, client: MlflowClient, experiment: str, ledger: Ledger, *, save: Callable[[Path], None],
                 run_id: Callable[[], str], tags: Callable[[], Mapping[str, str]]) -> None:
        self._client = client
        self._experiment = experiment
        self._ledger = ledger
        self._save = save
        self._run_id = run_id
        self._tags = tags

    def register(self, key: str) -> int:
        """The number that the ledger gave this key, else the next one; the model is kept with the deployment run.

        Two deployers may take the same number: the one that loses the next slot comes here again.
        """
        if keeping_run(self._client, self._experiment, key) is None:
            run_id = self._run_id()
            keep_model(self._client, run_id, self._save)
            with talking():
                for name, value in {**self._tags(), KEY: key}.items():
                    self._client.set_tag(run_id, name, value)
        slots = self._ledger.view().slots
        known = (slot.version for slot in slots if slot.key == key)
        return next(known, 1 + max((slot.version for slot in slots), default=0))

    def holders(self) -> Holders:
        """Nobody: there are no aliases and no stages."""
        return NOBODY

    def expected(self, _head: Slot, _previous: Slot | None) -> Holders:
        """What holders() gives."""
        return NOBODY

    def set_alias(self, _alias: str, _version: int | None) -> None:
        """There are none."""

    def set_production(self, _version: int) -> None:
        """There are no stages."""

    def keys(self) -> None:
        """There are no versions beside the ledger's."""


def keeping_run(client: MlflowClient, experiment: str, key: str) -> str | None:
    """The deployment run that keeps the model of a promotion key: it was tagged once all files were there."""
    home = find_experiment(client, experiment)
    if home is None:
        return None
    with talking():
        runs = client.search_runs([home.experiment_id], f"tags.`{KEY}` = '{key}' and tags.`{IDENTITY}` LIKE '%' "
                                  f"and tags.{KIND} = 'deployment'", order_by=["attributes.start_time"], max_results=1)
    return str(runs[0].info.run_id) if runs else None


def fetch(client: MlflowClient, experiment: str, slot: Slot, folder: Path) -> tuple[Path, ModelIdentity]:
    """Download the model of a slot as one plain transformers folder; raises Undecided where no run keeps it."""
    run_id = keeping_run(client, experiment, slot.key)
    if run_id is None:
        raise Undecided(f"version {slot.version}: no deployment run in experiment {experiment!r} keeps its model; "
                        "restore the run, or promote another model with --force-deploy")
    with talking():
        identity = client.get_run(run_id).data.tags[IDENTITY]
    return plain(fetch_files(client, run_id, ARTIFACT, folder)), ModelIdentity.model_validate_json(identity)
