"""Sequences of deployments through the whole gate, on a real MLflow store; merging alone is left out."""

import logging
from pathlib import Path

import pytest

from scripts import rollback_script
from src.core.params import MlflowParams, Params, load_params
from src.core.records import EvaluationReport
from src.model_selection import Decision, Reason, Verdict
from tests.fakes.history_store import answers, challenger, deploy, evaluate, write_params
from tests.fakes.promoted import run
from utils import mlflow_utils
from utils.tracking.ledger import MlflowLedger

ANSWERS = answers(3, rows=8)
TOMORROW = answers(3, rows=8, split="Please: ")


class Shop:
    """One model's store, before which challengers are brought one after another."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.params: Params = load_params(config)
        self.reports: dict[str, EvaluationReport] = {}

    def deploy(self, mark: str, score: float, *flags: str, tomorrow: bool = False) -> Decision:
        self.reports[mark] = challenger(self.params, mark, TOMORROW if tomorrow else ANSWERS, score)
        return deploy(self.config, *flags)

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
    return Shop(write_params(tmp_path, Path(__file__).parents[2] / "params.yaml"))


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
    evaluate(shop.params, shop.reports["a"].model, TOMORROW, 0.3, Path("results/champion"))
    better = shop.deploy("b", 0.9, tomorrow=True)
    assert (better.reason, str(better.gain)) == (Reason.IMPROVED, "0.600000000")
    assert shop.champion == "b"
