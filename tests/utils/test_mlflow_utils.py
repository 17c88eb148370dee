from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import mlflow
import pytest

from src.core.errors import InvalidParams, Undecided
from src.core.params import METRICS, MlflowParams
from src.core.records import digest_of
from src.ledger.slots import LedgerView
from src.model_selection import Policy, ScoredRun
from tests.fakes.factories import WEIGHTS
from utils import mlflow_utils
from utils.tracking import history as mlflow_history
from utils.tracking.history import HistoryReader, ScoreHistory

NAME, CONTRACT = "test-model", "c" * 64
HALVES = dict.fromkeys(METRICS, 0.5)


class Store:
    """An MLflow store that evaluations are written to, and their history as the gate reads it."""

    def __init__(self, params: MlflowParams) -> None:
        self.params, self.client = params, mlflow_utils.connect(params)

    def log(self, *, value: float = 0.5, model: str = "d", status: str = "FINISHED",
            tags: Mapping[str, str] | None = None, metrics: Mapping[str, float] | None = None) -> str:
        """One evaluation run with every component at `value`; returns its id."""
        home = mlflow_utils.ensure_experiment(self.client, self.params.experiment_name, {})
        standard = {"kind": "evaluation", "champion.model_name": NAME, "champion.contract": CONTRACT,
                    "champion.model_digest": model * 64, "champion.weights": digest_of(WEIGHTS)}
        run = self.client.create_run(home.experiment_id, tags={**standard, **(tags or {})})
        for name, number in (metrics or dict.fromkeys(METRICS, value)).items():
            self.client.log_metric(run.info.run_id, name, number)
        self.client.log_metric(run.info.run_id, "weighted_score", value)
        self.client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id)

    def read(self) -> ScoreHistory:
        reader = HistoryReader(self.client, experiment=self.params.experiment_name, model_name=NAME, contract=CONTRACT)
        return reader.read(Policy(WEIGHTS, Decimal("0.001"), require_significance=False), LedgerView(()), ignored=[])

    def runs(self) -> list[ScoredRun]:
        return list(self.read().runs)


@pytest.fixture
def store(mlflow_params: MlflowParams) -> Store:
    return Store(mlflow_params)


def test_a_server_that_refuses_connections_is_undecided_within_seconds(
    mlflow_params: MlflowParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Undecided, match=r"MLflow at http://127\.0\.0\.1:9"):
        Store(mlflow_params.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})).read()


@pytest.mark.parametrize("name", ["MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
def test_a_setting_of_mlflows_client_that_is_no_number_is_named(
    mlflow_params: MlflowParams, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "soon")
    with pytest.raises(InvalidParams, match=f"{name}: 'soon' is no whole number"):
        mlflow_utils.connect(mlflow_params)


def test_a_deleted_experiment_is_undecided_not_an_empty_history(store: Store) -> None:
    store.log()
    store.client.delete_experiment(store.client.get_experiment_by_name(store.params.experiment_name).experiment_id)
    with pytest.raises(Undecided, match="mlflow experiments restore"):
        store.runs()


def test_a_server_that_ignores_the_filter_is_undecided(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.log(tags={"champion.model_name": "another"})
    search = store.client.search_runs
    monkeypatch.setattr(store.client, "search_runs", lambda ids, _query, *rest, **more: search(ids, "", *rest, **more))
    with pytest.raises(Undecided, match="was not asked for"):
        store.runs()


def test_a_deleted_run_says_nothing(store: Store) -> None:
    store.client.delete_run(store.log(value=0.99))
    assert store.runs() == []


@pytest.mark.parametrize("odd", [
    {"status": "FAILED"}, {"status": "KILLED"}, {"status": "RUNNING"},
    {"tags": {"champion.model_name": "another"}}, {"tags": {"champion.contract": "e" * 64}},
    {"tags": {"kind": "deployment"}}, {"tags": {"champion.excluded": "measured on a broken machine"}},
    {"metrics": {**HALVES, "bleu4": float("nan")}}, {"metrics": {**HALVES, "bleu4": float("inf")}},
    {"metrics": {**HALVES, "bleu4": -0.1}}, {"metrics": {**HALVES, "bleu4": 1.5}}, {"metrics": {"bleu1": 0.5}},
], ids=str)
def test_a_run_that_is_unfinished_of_something_else_excluded_or_impossible_says_nothing_however_good(
    store: Store, odd: dict[str, Any]
) -> None:
    store.log(value=0.99, **odd)
    assert store.runs() == []


def test_a_run_of_zero_is_history(store: Store) -> None:
    run_id = store.log(value=0.0)
    assert [(run.run_id, run.metrics.bleu4) for run in store.runs()] == [(run_id, 0.0)]


@pytest.fixture
def long(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose history counts as long from three runs on."""
    monkeypatch.setattr(mlflow_history, "SHORT", 2)
    return store


def test_of_a_long_history_the_best_is_found_and_said_to_be_a_part(long: Store) -> None:
    runs = [long.log(value=number / 10, model=str(number)) for number in (3, 5, 1, 4, 2, 0)]
    found = long.read()
    assert not found.complete
    assert max(found.runs, key=lambda run: run.metrics.bleu4).run_id == runs[1]


def test_in_a_long_history_a_model_counts_with_its_latest_run(long: Store) -> None:
    for value, model in ((0.9, "1"), (0.5, "2"), (0.4, "3"), (0.1, "1")):
        long.log(value=value, model=model)
    assert max(run.metrics.bleu4 for run in long.runs()) == 0.5


def test_in_a_long_history_runs_scored_under_other_weights_are_read_too(long: Store) -> None:
    for model in "123":
        long.log(model=model)
    other = long.log(value=0.8, model="4", tags={"champion.weights": "0" * 64})
    assert other in {run.run_id for run in long.runs()}


def test_a_stage_that_raises_leaves_a_failed_run(store: Store) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        mlflow_utils.stage_run(store.params, kind="evaluation", name="broken", tags={}) as run_id,
    ):
        raise ZeroDivisionError
    assert store.client.get_run(run_id).info.status == "FAILED"
    assert mlflow.active_run() is None
