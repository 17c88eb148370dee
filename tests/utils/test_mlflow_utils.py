from collections.abc import Mapping
from decimal import Decimal

import mlflow
import pytest
from mlflow import MlflowClient

from src.core.errors import InvalidParams, Undecided
from src.core.params import METRICS, MlflowParams
from src.core.records import digest_of
from src.ledger.slots import LedgerView
from src.model_selection import Policy, ScoredRun
from utils import mlflow_utils
from utils.tracking import history as mlflow_history
from utils.tracking.history import HistoryReader, ScoreHistory

NAME, CONTRACT = "test-model", "c" * 64


WEIGHTS = {"bleu1": 0.1, "bleu2": 0.15, "bleu3": 0.25, "bleu4": 0.4, "rougeL_precision": 0.1}


@pytest.fixture
def client(mlflow_params: MlflowParams) -> MlflowClient:
    return mlflow_utils.connect(mlflow_params)


def log(client: MlflowClient, params: MlflowParams, *, value: float = 0.5, status: str = "FINISHED",
        tags: Mapping[str, str] | None = None, metrics: Mapping[str, float] | None = None) -> str:
    """One evaluation run with every component at `value`; returns its id."""
    home = mlflow_utils.ensure_experiment(client, params.experiment_name, {})
    standard = {"kind": "evaluation", "champion.model_name": NAME, "champion.contract": CONTRACT,
                "champion.model_digest": "d" * 64, "champion.weights": digest_of(WEIGHTS)}
    run = client.create_run(home.experiment_id, tags={**standard, **(tags or {})})
    for name, number in (metrics or dict.fromkeys(METRICS, value)).items():
        client.log_metric(run.info.run_id, name, number)
    client.log_metric(run.info.run_id, "weighted_score", value)
    client.set_terminated(run.info.run_id, status)
    return str(run.info.run_id)


def read(client: MlflowClient, params: MlflowParams) -> ScoreHistory:
    reader = HistoryReader(client, experiment=params.experiment_name, model_name=NAME, contract=CONTRACT)
    return reader.read(Policy(WEIGHTS, Decimal("0.001"), require_significance=False), LedgerView(()), ignored=[])


def history(client: MlflowClient, params: MlflowParams) -> list[ScoredRun]:
    return list(read(client, params).runs)


def test_a_server_that_refuses_connections_is_undecided_within_seconds(
    mlflow_params: MlflowParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    params = mlflow_params.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    with pytest.raises(Undecided, match=r"MLflow at http://127\.0\.0\.1:9"):
        read(mlflow_utils.connect(params), params)


@pytest.mark.parametrize("name", ["MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
def test_a_setting_of_mlflows_client_that_is_no_number_is_named(
    mlflow_params: MlflowParams, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "soon")
    with pytest.raises(InvalidParams, match=f"{name}: 'soon' is no whole number"):
        mlflow_utils.connect(mlflow_params)


def test_a_deleted_experiment_is_undecided_not_an_empty_history(
    client: MlflowClient, mlflow_params: MlflowParams
) -> None:
    log(client, mlflow_params)
    client.delete_experiment(client.get_experiment_by_name(mlflow_params.experiment_name).experiment_id)
    with pytest.raises(Undecided, match="mlflow experiments restore"):
        history(client, mlflow_params)


def test_a_server_that_ignores_the_filter_is_undecided(
    client: MlflowClient, mlflow_params: MlflowParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(client, mlflow_params, tags={"champion.model_name": "another"})
    search = client.search_runs
    monkeypatch.setattr(client, "search_runs", lambda ids, _query, *rest, **more: search(ids, "", *rest, **more))
    with pytest.raises(Undecided, match="was not asked for"):
        history(client, mlflow_params)


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "RUNNING"])
def test_a_run_that_did_not_finish_says_nothing_however_good(
    client: MlflowClient, mlflow_params: MlflowParams, status: str
) -> None:
    log(client, mlflow_params, value=0.99, status=status)
    assert history(client, mlflow_params) == []


def test_a_deleted_run_says_nothing(client: MlflowClient, mlflow_params: MlflowParams) -> None:
    client.delete_run(log(client, mlflow_params, value=0.99))
    assert history(client, mlflow_params) == []


@pytest.mark.parametrize(
    "tags",
    [
        {"champion.model_name": "another"},
        {"champion.contract": "e" * 64},
        {"kind": "deployment"},
        {"champion.excluded": "measured on a broken machine"},
    ],
)
def test_runs_of_another_model_contract_or_kind_and_excluded_ones_are_left_out(
    client: MlflowClient, mlflow_params: MlflowParams, tags: dict[str, str]
) -> None:
    log(client, mlflow_params, tags=tags)
    assert history(client, mlflow_params) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1, 1.5])
def test_a_component_that_is_no_share_of_one_takes_its_run_out(
    client: MlflowClient, mlflow_params: MlflowParams, bad: float
) -> None:
    log(client, mlflow_params, metrics={**dict.fromkeys(METRICS, 0.5), "bleu4": bad})
    assert history(client, mlflow_params) == []


def test_a_missing_component_takes_its_run_out(client: MlflowClient, mlflow_params: MlflowParams) -> None:
    log(client, mlflow_params, metrics={"bleu1": 0.5})
    assert history(client, mlflow_params) == []


def test_a_run_of_zero_is_history(client: MlflowClient, mlflow_params: MlflowParams) -> None:
    run_id = log(client, mlflow_params, value=0.0)
    assert [(run.run_id, run.metrics.bleu4) for run in history(client, mlflow_params)] == [(run_id, 0.0)]


def digests(*marks: str) -> list[dict[str, str]]:
    return [{"champion.model_digest": mark * 64} for mark in marks]


def test_of_a_long_history_the_best_is_found_and_said_to_be_a_part(
    client: MlflowClient, mlflow_params: MlflowParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_history, "SHORT", 2)
    tags = digests(*"123456")
    runs = [log(client, mlflow_params, value=number / 10, tags=tags[number]) for number in (3, 5, 1, 4, 2, 0)]
    found = read(client, mlflow_params)
    assert not found.complete
    assert max(found.runs, key=lambda run: run.metrics.bleu4).run_id == runs[1]


def test_in_a_long_history_a_model_counts_with_its_latest_run(
    client: MlflowClient, mlflow_params: MlflowParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_history, "SHORT", 2)
    first, second, third = digests(*"123")
    for value, tags in ((0.9, first), (0.5, second), (0.4, third), (0.1, first)):
        log(client, mlflow_params, value=value, tags=tags)
    assert max(run.metrics.bleu4 for run in read(client, mlflow_params).runs) == 0.5


def test_in_a_long_history_runs_scored_under_other_weights_are_read_too(
    client: MlflowClient, mlflow_params: MlflowParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_history, "SHORT", 2)
    for mark in "123":
        log(client, mlflow_params, tags=digests(mark)[0])
    other = log(client, mlflow_params, value=0.8, tags={**digests("4")[0], "champion.weights": "0" * 64})
    assert other in {run.run_id for run in read(client, mlflow_params).runs}


def test_a_stage_that_raises_leaves_a_failed_run(client: MlflowClient, mlflow_params: MlflowParams) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        mlflow_utils.stage_run(mlflow_params, kind="evaluation", name="broken", tags={}) as run_id,
    ):
        raise ZeroDivisionError
    assert client.get_run(run_id).info.status == "FAILED"
    assert mlflow.active_run() is None
