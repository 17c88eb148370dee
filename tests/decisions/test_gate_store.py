"""Sequences of deployments through the whole gate, on a real MLflow store; merging alone is left out."""

import logging
import time
from pathlib import Path

import pytest

from scripts import rollback_script
from src.core.params import MlflowParams, Params, load_params
from src.core.records import EvaluationReport
from src.evaluation.significance import adjusted_confidence
from src.model_selection import Decision, Reason, Verdict
from tests.fakes.history_store import (
    BY_BLEU1,
    challenger,
    deploy,
    evaluate,
    scored_answers,
    write_params,
)
from tests.fakes.promoted import run
from tests.fakes.weightless import call
from utils import mlflow_utils
from utils.tracking.ledger import MlflowLedger

TOMORROW = "Please: "
SOURCE = Path(__file__).parents[2] / "params.yaml"
TOO_FEW = "least_rows: 125 evaluated, 126 asked for"


class Shop:
    """One model's store, before which challengers are brought one after another."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.params: Params = load_params(config)
        self.reports: dict[str, EvaluationReport] = {}

    def deploy(self, mark: str, score: float, *flags: str, tomorrow: bool = False) -> Decision:
        self.reports[mark] = challenger(
            self.params, mark, scored_answers(score, split=TOMORROW if tomorrow else ""))
        return deploy(self.config, *flags)

    def guards(self, **changes: object) -> None:
        """Change deployment.guards in params.yaml; the others stay as they are."""
        guards = self.params.deployment.guards.model_dump() | changes
        significance = load_params(self.config).deployment.significance
        self.params = load_params(write_params(self.config.parent, SOURCE, guards=guards, significance=significance,
                                               weighted_scoring=BY_BLEU1))

    def require_significance(self) -> None:
        write_params(self.config.parent, SOURCE, significance="require", weighted_scoring=BY_BLEU1)

    def number(self, mark: str, score: float, *, tomorrow: bool = False) -> int:
        """Deploy a challenger; returns which one it is since the last promotion, by the confidence asked of it."""
        found = self.deploy(mark, score, tomorrow=tomorrow).evidence
        assert found
        return next(k for k in range(1, 50) if adjusted_confidence(0.95, k) == found.confidence)

    def guard_tag(self, mark: str) -> str | None:
        run_id = self.reports[mark].run_id
        tags = mlflow_utils.connect(self.params.mlflow).get_run(run_id).data.tags
        found = tags.get("champion.failed_guard")
        return None if found is None else str(found)

    @property
    def champion(self) -> str:
        name, home = self.params.deployment.model_registry_name, self.params.mlflow.experiment_name
        client = mlflow_utils.connect(self.params.mlflow)
        head = MlflowLedger(client, name, home).view().head
        assert head
        assert int(client.get_registered_model(name).aliases["champion"]) == head.version
        return next(mark for mark, report in self.reports.items() if report.model_digest == head.model_digest)


@pytest.fixture
def shop(mlflow_params: MlflowParams, tmp_path: Path) -> Shop:
    logging.getLogger("alembic").setLevel(logging.ERROR)
    return Shop(write_params(tmp_path, SOURCE, weighted_scoring=BY_BLEU1))


def test_steps_below_the_threshold_promote_once_they_add_up_to_it(shop: Shop) -> None:
    found = [shop.deploy(mark, score).reason for mark, score in
             (("a", 0.5), ("b", 0.5004), ("c", 0.5008), ("d", 0.5012), ("e", 0.5016))]
    assert found == [Reason.FIRST_MODEL, Reason.BELOW_THRESHOLD, Reason.BELOW_THRESHOLD, Reason.IMPROVED,
                     Reason.BELOW_THRESHOLD]
    assert shop.champion == "d"


def test_two_rivals_within_the_threshold_leave_one_of_them_champion(shop: Shop) -> None:
    for mark, score in (("a", 0.4), ("b", 0.6)):
        shop.deploy(mark, score)
    assert shop.deploy("rival", 0.6005).reason is Reason.BELOW_THRESHOLD
    assert shop.deploy("b", 0.6).verdict is Verdict.ALREADY
    assert shop.deploy("third", 0.601).reason is Reason.IMPROVED
    assert shop.champion == "third"


def test_after_a_forced_worse_model_the_bar_is_still_the_best_and_it_can_come_back(shop: Shop) -> None:
    shop.deploy("a", 0.6)
    forced = shop.deploy("worse", 0.4, "--force-deploy", "--reason", "the other one swears")
    assert (forced.reason, forced.overrode, shop.champion) == (Reason.FORCED, Reason.NOT_BEST, "worse")
    between = shop.deploy("between", 0.5)
    assert (between.reason, str(between.gain)) == (Reason.NOT_BEST, "-0.100000000")
    assert shop.deploy("better", 0.7).reason is Reason.IMPROVED
    assert shop.champion == "better"


def test_after_a_rollback_the_blocked_model_is_refused_and_is_no_bar(shop: Shop) -> None:
    shop.deploy("a", 0.5)
    shop.deploy("b", 0.7)
    assert run(rollback_script, "--config", shop.config, "--reason", "complaints") == 0
    assert shop.champion == "a"
    assert shop.deploy("b", 0.7).verdict is Verdict.REFUSED
    assert shop.deploy("c", 0.6).reason is Reason.IMPROVED
    assert shop.champion == "c"


def test_across_a_changed_contract_nothing_is_compared_until_the_champion_is_scored_under_it(shop: Shop) -> None:
    shop.deploy("a", 0.6)
    dry = shop.deploy("b", 0.9, "--dry-run", tomorrow=True)
    assert (dry.reason, dry.to_beat.best_evaluated) == (Reason.INCOMPARABLE, None)
    evaluate(shop.params, shop.reports["a"].model, scored_answers(0.3, split=TOMORROW), Path("results/champion"))
    better = shop.deploy("b", 0.9, tomorrow=True)
    assert (better.reason, str(better.gain)) == (Reason.IMPROVED, "0.600000000")
    assert shop.champion == "b"


def test_a_model_that_a_guard_refused_is_no_score_to_beat(shop: Shop) -> None:
    shop.deploy("a", 0.5)
    shop.guards(least_rows=126)
    assert shop.deploy("refused", 0.9).reason is Reason.GUARD
    hidden = shop.deploy("refused and not the best", 0.4)
    assert (hidden.reason, hidden.failed_guard) == (Reason.NOT_BEST, TOO_FEW)
    assert [shop.guard_tag(mark) for mark in shop.reports] == [None, TOO_FEW, TOO_FEW]
    shop.guards(least_rows=1)
    honest = shop.deploy("honest", 0.6)
    assert (honest.reason, honest.to_beat.runs) == (Reason.IMPROVED, 1)
    assert shop.champion == "honest"


def test_a_refused_model_is_a_score_to_beat_again_once_it_passes_its_guards_or_is_forced(shop: Shop) -> None:
    shop.deploy("a", 0.5)
    shop.guards(least_rows=126)
    shop.deploy("below", 0.5002)
    assert shop.guard_tag("below") == TOO_FEW
    shop.guards(least_rows=1)
    assert shop.deploy("below", 0.5002).reason is Reason.BELOW_THRESHOLD
    assert shop.guard_tag("below") is None
    shop.guards(least_rows=126)
    shop.deploy("forced", 0.7)
    assert shop.deploy("forced", 0.7, "--force-deploy", "--reason", "few rows are enough").overrode is Reason.GUARD
    assert shop.deploy("worse", 0.6).reason is Reason.NOT_BEST
    assert shop.champion == "forced"


def test_the_mark_of_a_refusal_outlives_a_crash_before_it_and_an_older_version_that_did_not_set_it(
    shop: Shop,
) -> None:
    shop.deploy("a", 0.5)
    shop.guards(least_rows=126)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.tracking.deployments.mark_guard", interrupt)
        with pytest.raises(KeyboardInterrupt):
            shop.deploy("refused", 0.9)
    assert shop.guard_tag("refused") is None
    deploy(shop.config)
    assert shop.guard_tag("refused") == TOO_FEW
    client = mlflow_utils.connect(shop.params.mlflow)
    client.delete_tag(shop.reports["refused"].run_id, "champion.failed_guard")  # as a version without it left it
    deploy(shop.config)
    assert shop.guard_tag("refused") == TOO_FEW


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_dry_run_marks_no_refusal(shop: Shop) -> None:
    shop.deploy("a", 0.5)
    shop.guards(least_rows=126)
    shop.reports["refused"] = challenger(shop.params, "refused", scored_answers(0.9))
    assert call("--dry-run", "--config", str(shop.config)) == 0
    assert shop.guard_tag("refused") is None


def test_every_try_since_the_last_promotion_counts_whatever_became_of_it(shop: Shop) -> None:
    shop.require_significance()
    assert shop.deploy("a", 0.5).evidence is None
    assert shop.number("one", 0.4) == 1
    client = mlflow_utils.connect(shop.params.mlflow)
    client.set_tag(shop.reports["one"].run_id, "champion.excluded", "a broken machine")
    assert shop.number("two", 0.4) == 2
    client.delete_run(shop.reports["two"].run_id)
    shop.guards(least_rows=126)
    assert shop.number("refused", 0.505) == 3
    shop.guards(least_rows=1)
    assert shop.number("refused", 0.505) == 3, "a model that is evaluated again counts once"
    evaluate(shop.params, shop.reports["a"].model, scored_answers(0.3, split=TOMORROW), Path("results/champion"))
    assert shop.number("tomorrow's", 0.2, tomorrow=True) == 4


def test_a_promotion_starts_the_count_anew_and_a_rollback_or_a_block_does_not(shop: Shop) -> None:
    shop.require_significance()
    shop.deploy("a", 0.5)
    assert shop.number("one", 0.4) == 1
    time.sleep(1)  # a slot's time has no fractions
    shop.deploy("b", 0.6, "--force-deploy", "--reason", "it knows the new prices")
    assert shop.number("two", 0.4) == 1
    assert run(rollback_script, "--config", shop.config, "--block", "1", "--reason", "it swears") == 0
    assert shop.number("three", 0.4) == 2
    assert run(rollback_script, "--config", shop.config, "--to", "1", "--reason", "complaints") == 0
    assert shop.number("four", 0.4) == 4, "a is champion again, and everybody since its promotion was a try"


def test_a_challenger_evaluated_before_the_last_promotion_counts_with_those_it_could_have_been_chosen_from(
    shop: Shop,
) -> None:
    shop.require_significance()
    shop.deploy("a", 0.5)
    for mark in ("one", "two", "three"):
        challenger(shop.params, mark, scored_answers(0.4))
    time.sleep(1)
    shop.deploy("b", 0.3, "--force-deploy", "--reason", "it knows the new prices")
    assert shop.number("three", 0.4) == 3
    assert shop.number("new", 0.4) == 2, "three was evaluated again since"
