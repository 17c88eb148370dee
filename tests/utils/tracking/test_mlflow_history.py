"""Searching a long history finds what reading all of it finds."""

import logging
from pathlib import Path

import pytest
from mlflow import MlflowClient

from src.core.params import MlflowParams, Params, load_params
from src.ledger.slots import LedgerView
from src.model_selection import (
    Policy,
    Question,
    ScoredRun,
    ScoresToBeat,
    counted_since,
    latest_by_model,
    scores_to_beat,
)
from tests.fakes import history_store, long_history
from utils import mlflow_utils
from utils.tracking import history as mlflow_history
from utils.tracking.history import HistoryReader, ScoreHistory

NOBODY = LedgerView(())


class Store:
    """A history multiplied by SQL, and the questions that are asked of it."""

    def __init__(self, params: Params, runs: int, **odd: float) -> None:
        self.params, self.client = params, mlflow_utils.connect(params.mlflow)
        report = history_store.challenger(params, "template", history_store.scored_answers(0.5))
        self.deleted = report.model_digest, report.contract_digest
        self.made, self.ledger = long_history.fill(self.client, params, report, runs, **odd)
        rival = history_store.challenger(params, "challenger", history_store.scored_answers(0.98))
        self.challenger = ScoredRun(rival.run_id, rival.model_digest, rival.contract_digest, rival.metrics, 0)

        self.reader = HistoryReader(self.client, experiment=params.mlflow.experiment_name,
                                    model_name=params.deployment.model_registry_name, contract=self.challenger.contract)

    def history(self, policy: Policy, ledger: LedgerView) -> ScoreHistory:
        return self.reader.read(policy, ledger, {self.challenger.model_digest, *ledger.blocked_digests})

    def question(self, history: list[ScoredRun], policy: Policy, ledger: LedgerView) -> Question:
        return Question(self.challenger, history, True, ledger, policy, False, True, False, None, None)

    def searched(self, ledger: LedgerView) -> ScoresToBeat:
        policy = Policy.from_params(self.params.deployment)
        found = self.history(policy, ledger)
        assert not found.complete
        return scores_to_beat(self.question(list(found.runs), policy, ledger))

    def all(self, ledger: LedgerView) -> ScoresToBeat:
        counted = [one.run for one in self.made if one.counts]
        return scores_to_beat(self.question(counted, Policy.from_params(self.params.deployment), ledger))


@pytest.fixture
def params(mlflow_params: MlflowParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Of a store in which six runs are a long history."""
    monkeypatch.setattr(mlflow_history, "SHORT", 5)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    return load_params(history_store.write_params(tmp_path, Path(__file__).parents[3] / "params.yaml",
                                                  weighted_scoring=history_store.BY_BLEU1))


def same(found: ScoresToBeat, expected: ScoresToBeat) -> bool:
    return all(getattr(found, name) == getattr(expected, name)
               for name in ("best_evaluated", "best_promoted", "champion"))


@pytest.mark.parametrize("page", [1000, 7])
@pytest.mark.parametrize("growth", [0.0, 0.3])
def test_a_search_finds_the_bars_that_reading_everything_finds(
    params: Params, monkeypatch: pytest.MonkeyPatch, growth: float, page: int
) -> None:
    store = Store(params, 100, again=0.4, weights=0.1, growth=growth)
    monkeypatch.setattr(mlflow_history, "PAGE", page)
    for slots in range(0, len(store.ledger.slots) + 1, 3):
        ledger = LedgerView(store.ledger.slots[:slots])
        assert same(store.searched(ledger), store.all(ledger)), slots


def refuse_the_best(store: Store, count: int) -> set[str]:
    """Tag the highest runs as if a guard had refused their models; returns their ids."""
    counted = [one.run for one in store.made if one.counts and one.run.contract == store.challenger.contract]
    best = sorted(counted, key=lambda run: -run.metrics.bleu4)[:count]
    for run in best:
        store.client.set_tag(run.run_id, "champion.failed_guard", "least_rows: 8 evaluated, 9 asked for")
    return {run.run_id for run in best}


@pytest.mark.parametrize(("short", "page"), [(1000, 1000), (5, 1000), (5, 7)])
def test_models_that_a_guard_refused_are_no_scores_to_beat_unless_they_were_promoted(
    params: Params, monkeypatch: pytest.MonkeyPatch, short: int, page: int
) -> None:
    store = Store(params, 100, again=0.4, growth=0.0)
    refused = refuse_the_best(store, 12)
    monkeypatch.setattr(mlflow_history, "PAGE", page)
    monkeypatch.setattr(mlflow_history, "SHORT", short)
    policy = Policy.from_params(params.deployment)
    for ledger in (NOBODY, LedgerView(store.ledger.slots[:3]), store.ledger):
        everything = latest_by_model(one.run for one in store.made if one.counts
                                     and one.run.contract == store.challenger.contract)
        standing = [run for digest, run in everything.items()
                    if run.run_id not in refused or digest in ledger.promoted_digests]
        expected = scores_to_beat(store.question(standing, policy, ledger))
        found = store.history(policy, ledger)
        assert found.complete == (short > 100)
        assert same(scores_to_beat(store.question(list(found.runs), policy, ledger)), expected)
    assert expected.best_promoted is not None
    assert expected.best_promoted.run_id in refused, "the promoted one stays a score to beat"


def test_beside_a_forced_worse_champion_the_best_is_still_found(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(params, 80)
    monkeypatch.setattr(mlflow_history, "PAGE", 7)
    worst = min((one.run for one in store.made if one.counts and one.run.contract == store.challenger.contract),
                key=lambda run: run.metrics.bleu4)
    ledger = LedgerView((*store.ledger.slots, long_history.slot(store.ledger, worst)))
    found = store.searched(ledger)
    assert same(found, store.all(ledger))
    assert found.champion is not None
    assert found.champion.model_digest == worst.model_digest


@pytest.mark.parametrize(("short", "page"), [(1000, 1000), (5, 1000), (5, 7)])
def test_every_challenger_since_the_last_promotion_counts_whatever_became_of_it(
    params: Params, monkeypatch: pytest.MonkeyPatch, short: int, page: int
) -> None:
    store = Store(params, 120, again=0.3, excluded=0.1, deleted=0.1, FAILED=0.1, other_contract=0.2)
    refuse_the_best(store, 12)
    monkeypatch.setattr(mlflow_history, "SHORT", short)
    monkeypatch.setattr(mlflow_history, "PAGE", page)
    for slots in (len(store.ledger.slots), 4, 2):
        ledger = LedgerView(store.ledger.slots[:slots])
        promoted, since = {slot.model_digest for slot in ledger.slots}, counted_since(ledger, None)
        tried = {(one.run.model_digest, one.run.contract) for one in store.made
                 if one.run.finished_at > since and one.status == "FINISHED" and one.run.model_digest not in promoted}
        assert store.reader.challengers(store.challenger, ledger) == 1 + len(tried | {store.deleted})
    assert len({contract for _, contract in tried}) == 2


def test_the_count_asks_two_narrow_questions_and_nothing_else_reads_the_runs_since_the_last_promotion(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(params, 120)
    asked = questions(monkeypatch)
    store.reader.challengers(store.challenger, store.ledger)
    assert [query.split("`")[0].split(" ")[0] for query in asked] == ["tags.", "attributes.end_time"]
    store.searched(store.ledger)
    assert sum("end_time" in query for query in asked) == 1


def questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that every query to MLflow is added to."""
    asked: list[str] = []
    search = MlflowClient.search_runs

    def counted(self: MlflowClient, ids: list[str], query: str, *rest: object, **more: object) -> object:
        asked.append(query)
        return search(self, ids, query, *rest, **more)

    monkeypatch.setattr(MlflowClient, "search_runs", counted)
    return asked


def test_a_long_history_costs_few_questions(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(params, 150)
    monkeypatch.setattr(mlflow_history, "SHORT", 20)
    asked = questions(monkeypatch)
    store.searched(store.ledger)
    assert len(asked) <= 9
    assert all(not query.startswith("attributes.status") for query in asked[1:]), "the narrowest clause comes first"


def test_the_list_of_evaluations_holds_every_contract_and_the_excluded_with_their_note(params: Params) -> None:
    store = Store(params, 60, excluded=0.2, other_contract=0.2)
    reader = HistoryReader(store.client, experiment=params.mlflow.experiment_name,
                           model_name=params.deployment.model_registry_name, contract=None)
    listed = {run: note for run, note, _ in reader.evaluations()}
    finished = {one.run: one.tags.get("champion.excluded") for one in store.made
                if (one.status, one.stage) == ("FINISHED", "active")}
    assert {run: note for run, note in listed.items() if run.run_id != store.challenger.run_id} == finished
    assert len({run.contract for run in listed}) == 2
    assert any(finished.values())
