import multiprocessing
from typing import Any

import pytest
from mlflow import MlflowClient

from src.core.errors import IntegrityError, Undecided
from src.core.params import MlflowParams
from src.ledger.slots import slot_name
from tests.fakes import factories
from utils import mlflow_utils
from utils.tracking.ledger import MlflowLedger

NAME = "test-model"


FIRST, SECOND = factories.ledger(("a", 0.3), ("b", 0.4)).slots


@pytest.fixture
def client(mlflow_params: MlflowParams) -> MlflowClient:
    return mlflow_utils.connect(mlflow_params)


@pytest.fixture
def ledger(client: MlflowClient, mlflow_params: MlflowParams) -> MlflowLedger:
    return MlflowLedger(client, NAME, mlflow_params.experiment_name)


def ledger_run(client: MlflowClient) -> str:
    return str(client.get_experiment_by_name(f"{NAME}.ledger").tags["champion.ledger_run"])


def test_a_deleted_ledger_run_is_an_integrity_error_that_names_the_remedy(
    client: MlflowClient, ledger: MlflowLedger
) -> None:
    ledger.claim(FIRST)
    client.delete_run(ledger_run(client))
    with pytest.raises(IntegrityError, match="mlflow runs restore"):
        ledger.view()


def test_a_hole_in_the_slots_is_an_integrity_error(client: MlflowClient, ledger: MlflowLedger) -> None:
    ledger.claim(FIRST)
    ledger.claim(SECOND.model_copy(update={"number": 3}))
    with pytest.raises(IntegrityError, match="without holes"):
        ledger.view()


def test_an_altered_slot_breaks_the_chain(client: MlflowClient, ledger: MlflowLedger) -> None:
    ledger.claim(FIRST)
    altered = SECOND.model_copy(update={"previous_sha256": "f" * 64})
    client.log_param(ledger_run(client), slot_name(2), altered.text())
    with pytest.raises(IntegrityError, match="does not continue slot 1"):
        ledger.view()


def test_a_store_that_lets_params_be_rewritten_is_refused(
    ledger: MlflowLedger, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a vendor's server: what was written last is what is read."""
    written: dict[str, str] = {}
    ledger.probe()
    original = client.get_run

    def forgetful(run_id: str) -> Any:
        run = original(run_id)
        run.data.params.update(written)
        return run

    monkeypatch.setattr(client, "log_param", lambda _run, name, text: written.update({name: text}))
    monkeypatch.setattr(client, "get_run", forgetful)
    with pytest.raises(Undecided, match="be overwritten"):
        ledger.probe()


def test_an_absent_ledger_is_empty_and_reading_it_creates_nothing(client: MlflowClient, ledger: MlflowLedger) -> None:
    assert ledger.view().slots == ()
    assert client.get_experiment_by_name(f"{NAME}.ledger") is None


def test_the_probe_passes_again_and_again_on_sqlite_and_leaves_no_slot(ledger: MlflowLedger) -> None:
    ledger.probe()
    ledger.probe()
    assert ledger.view().slots == ()


def test_slots_are_read_back_in_their_order(ledger: MlflowLedger) -> None:
    assert ledger.claim(FIRST)
    assert ledger.claim(SECOND)
    assert ledger.view().slots == (FIRST, SECOND)


def test_the_first_record_of_a_number_stays_and_may_be_claimed_again_because_a_reply_may_be_lost(
    ledger: MlflowLedger
) -> None:
    assert ledger.claim(FIRST)
    assert not ledger.claim(FIRST.model_copy(update={"actor": "late"}))
    assert ledger.claim(FIRST)
    assert ledger.view().slots == (FIRST,)


def _race(uri: str, experiment: str, actor: int, barrier: Any, won: Any) -> None:
    params = MlflowParams(tracking_uri=uri, experiment_name=experiment, deadline_seconds=120)
    ledger = MlflowLedger(mlflow_utils.connect(params), NAME, experiment)
    barrier.wait(300)
    won.put((actor, ledger.claim(FIRST.model_copy(update={"actor": str(actor)}))))


def test_of_four_processes_that_create_the_ledger_and_claim_at_once_exactly_one_wins(
    mlflow_params: MlflowParams, ledger: MlflowLedger
) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, won = context.Barrier(4), context.Queue()
    arguments = (mlflow_params.tracking_uri, mlflow_params.experiment_name)
    processes = [context.Process(target=_race, args=(*arguments, actor, barrier, won)) for actor in range(4)]
    for process in processes:
        process.start()
    results = dict(won.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    (winner,) = (actor for actor, result in results.items() if result)
    assert [slot.actor for slot in ledger.view().slots] == [str(winner)]
