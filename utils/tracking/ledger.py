"""The ledger on MLflow: one run whose params are the slots.

MLflow has no compare-and-swap, but a run param is write-once on every SQL store, and so is an experiment's name.
A tag of the experiment `<model>.ledger` names (pins) the run. It is set in the call that creates the experiment.
"""

import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from src.core.errors import IntegrityError, Undecided
from src.core.records import canonical_json
from src.ledger.copies import NEW_LEDGER
from src.ledger.slots import MAX_CHARACTERS, LedgerView, Slot, parse_slots, slot_name
from utils.mlflow_utils import ensure_experiment, explained, find_experiment, find_run, mlflow_errors, unanswered
from utils.tracking import tag

logger = logging.getLogger(__name__)

_PROBE = "probe"
_ONCE = "write-once"
_UNFIT = ("MLflow: this server lets a run param be overwritten, or cuts it short, so promotions could not be kept "
          "apart; use MLflow 2.9 or newer on a SQL store")


class MlflowLedger:
    """The ledger that the promotion protocol writes to."""

    def __init__(self, client: MlflowClient, model_name: str, home: str) -> None:
        """home: the experiment in which the ledger's run is created."""
        self._client, self._model_name, self._home = client, model_name, home
        self._experiment = f"{model_name}.ledger"

    def view(self) -> LedgerView:
        """The slots as they are now; empty if there is no ledger yet.

        Raises Undecided when the server does not answer, IntegrityError for holes, a broken chain or a deleted run.
        """
        texts = self.texts()
        if "" in texts:
            raise IntegrityError(f"ledger run {self._find()}: slots are not 1 to {len(texts)} without holes; "
                                 f"{NEW_LEDGER}")
        return parse_slots(texts)

    def texts(self) -> list[str]:
        """The slots as they are stored, altered ones included, and "" for a missing one.

        Raises Undecided when the server does not answer, IntegrityError for a deleted run.
        """
        run_id = self._find()
        if run_id is None:
            return []
        run = find_run(self._client, run_id)
        if run is None:
            raise IntegrityError(f"ledger run {run_id} is gone; `champion status --repair` restores it "
                                 "from results/deployment/ledger.jsonl or from its mirror on the Hub")
        if run.info.lifecycle_stage != "active":
            raise IntegrityError(f"ledger run {run_id} is deleted; `mlflow runs restore --run-id {run_id}` restores it")
        slots = {name: text for name, text in run.data.params.items() if name != _PROBE}
        last = max([len(slots), *(int(name[1:]) for name in slots if re.fullmatch(r"s\d{8}", name))])
        return [slots.get(slot_name(number), "") for number in range(1, last + 1)]

    def probe(self) -> None:
        """Check that this server keeps a param as long as a slot complete, and refuses to overwrite it.

        Raises Undecided if it does not.
        """
        run_id = self._ensure()
        stored = self._stored(run_id, _PROBE)
        known = stored if stored and stored.startswith(_ONCE) else _ONCE.ljust(MAX_CHARACTERS - 1, ".")
        try:
            self._client.log_param(run_id, _PROBE, known)
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise Undecided(_UNFIT) from error
            raise explained(error) from error
        if self._written(run_id, _PROBE, "rewritten") != known:
            raise Undecided(_UNFIT)

    def claim(self, slot: Slot) -> bool:
        """Write a slot. Returns False if another record has its number, True if this very record is there already."""
        text = slot.text()
        return self._written(self._ensure(), slot_name(slot.number), text) == text

    def renew(self) -> None:
        """Undelete the ledger's run; if it is gone for good, pin a new, empty run.

        The slots of a run that is gone can be written again from a copy. Run this by hand, and only once at a
        time: of two at once, one would fill a run that is no longer pinned.
        """
        run_id = self._find()
        if run_id is None:
            return
        run = find_run(self._client, run_id)
        if run is None:
            logger.warning("ledger run %s is gone; an empty one takes its place", run_id)
            self._pin(self._new_run())
        elif run.info.lifecycle_stage != "active":
            logger.warning("ledger run %s was deleted; undeleting it", run_id)
            with mlflow_errors():
                self._client.restore_run(run_id)

    def supersede(self, texts: Sequence[str], by: str) -> None:
        """Pin a new run with these slots as the ledger; the old one stays, tagged with the time, `by` and the new id.

        For an altered ledger. Run this by hand, while no deployment runs: a slot that is written meanwhile is lost.
        """
        old, new = self._find(), self._new_run()
        for number, text in enumerate(texts, start=1):
            if self._written(new, slot_name(number), text) != text:
                raise Undecided(_UNFIT)
        note = canonical_json({"by": by, "ledger_run": new, "time": datetime.now(UTC).isoformat(timespec="seconds")})
        with mlflow_errors():
            self._client.set_tag(old, tag.SUPERSEDED, note)
        self._pin(new)
        logger.warning("ledger run %s is superseded by %s; nothing of it was deleted", old, new)

    def _pin(self, run_id: str) -> None:
        with mlflow_errors():
            home = self._client.get_experiment_by_name(self._experiment)
            self._client.set_experiment_tag(home.experiment_id, tag.LEDGER_RUN, run_id)

    def _written(self, run_id: str, name: str, text: str) -> str | None:
        """Write a param; returns the value that the server has afterwards, which may be an earlier one."""
        try:
            self._client.log_param(run_id, name, text)
        except MlflowException as error:
            stored = None if unanswered(error) else self._stored(run_id, name)
            if stored is None:
                raise explained(error) from error
            return stored
        return self._stored(run_id, name)

    def _stored(self, run_id: str, name: str) -> str | None:
        with mlflow_errors():
            found: str | None = self._client.get_run(run_id).data.params.get(name)
        return found

    def _find(self) -> str | None:
        experiment = find_experiment(self._client, self._experiment)
        if experiment is None:
            return None
        if tag.LEDGER_RUN not in experiment.tags:
            raise IntegrityError(f"MLflow experiment {self._experiment!r} is not a ledger of Champion; rename it")
        return str(experiment.tags[tag.LEDGER_RUN])

    def _ensure(self) -> str:
        if (found := self._find()) is not None:
            return found
        made = self._new_run()
        pinned = str(ensure_experiment(self._client, self._experiment, {tag.LEDGER_RUN: made}).tags[tag.LEDGER_RUN])
        if pinned != made:  # another process pinned its own first
            with mlflow_errors():
                self._client.delete_run(made)
        return pinned

    def _new_run(self) -> str:
        with mlflow_errors():
            home = ensure_experiment(self._client, self._home, {})
            run = self._client.create_run(home.experiment_id, run_name=self._experiment,
                                          tags={tag.KIND: "ledger", tag.MODEL_NAME: self._model_name})
            self._client.set_terminated(run.info.run_id)
        return str(run.info.run_id)
