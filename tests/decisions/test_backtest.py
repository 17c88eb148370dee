"""The history decided again: the same gate, another policy, and nothing invented."""

import random
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from src.core.errors import InvalidParams
from src.core.params import METRICS, DeploymentParams, load_params
from src.core.records import Metrics, digest_of
from src.decisions.backtest import BacktestStep, backtest, changed, comparison
from src.ledger.slots import LedgerView
from src.model_selection import GainEvidence, Policy, Question, ScoredRun, Verdict, counted_since, decide
from tests.fakes.factories import CONTRACT, POLICY, question, run, slot

REQUIRED = replace(POLICY, require_significance=True)


@pytest.fixture(scope="module")
def params() -> DeploymentParams:
    return load_params(Path(__file__).parents[2] / "params.yaml").deployment


def none(*_: object) -> None:
    return None


def gain(low: float) -> GainEvidence:
    return GainEvidence(0.01, low, 0.02, 0.95, 0.001, 0.5, 0.9, 0.9, 0.01, 100, 40, 2000, 1)


def reasons(steps: list[BacktestStep]) -> list[str]:
    return [step.reason for step in steps]


def test_evaluations_are_decided_in_their_order_of_finishing() -> None:
    runs = [run("c", 0.6, at=3000), run("a", 0.5, at=1000), run("b", 0.5005, at=2000)]
    steps = backtest(runs, POLICY, none)
    assert [step.run_id for step in steps] == ["run-a", "run-b", "run-c"]
    assert backtest([], POLICY, none) == []
    assert reasons(steps) == ["first_model", "below_threshold", "improved"]


def test_a_higher_threshold_promotes_less_and_the_table_shows_where() -> None:
    runs = [run(f"m{k}", 0.5 + k / 200, at=1000 * k) for k in range(5)]
    strict = replace(POLICY, threshold=Decimal("0.01"))
    both = [backtest(runs, policy, none) for policy in (POLICY, strict)]
    assert [sum(step.promotes for step in steps) for steps in both] == [5, 3]
    lines = comparison(CONTRACT, [POLICY, strict], both)
    assert lines[3] == "2 promotions differ"
    assert [line.split()[1] for line in lines[5:]] == ["run-m1", "run-m3"]
    assert "not promoted (below threshold)" in lines[5]
    assert comparison(CONTRACT, [POLICY, POLICY], both[:1] * 2)[3:] == ["0 promotions differ"]


def test_other_weights_rank_the_same_components_otherwise() -> None:
    def made(name: str, bleu1: float, bleu4: float, at: int) -> ScoredRun:
        return ScoredRun(name, digest_of(name), CONTRACT, Metrics(**{**dict.fromkeys(METRICS, 0.5), "bleu1": bleu1,
                                                                     "bleu4": bleu4}), at)

    runs = [made("fluent", 0.9, 0.4, 1000), made("exact", 0.2, 0.5, 2000)]
    only = replace(POLICY, weights={**dict.fromkeys(METRICS, 0.0), "bleu4": 1.0})
    assert reasons(backtest(runs, POLICY, none)) == ["first_model", "not_best"]
    assert reasons(backtest(runs, only, none)) == ["first_model", "improved"]


def test_evidence_is_asked_for_only_where_it_decides_with_the_number_of_the_challenger() -> None:
    asked: list[tuple[str, str, int]] = []

    def evidence(ours: ScoredRun, theirs: ScoredRun, _: Policy, challengers: int) -> GainEvidence:
        asked.append((ours.run_id, theirs.run_id, challengers))
        return gain(-0.01 if ours.run_id == "run-c" else 0.005)

    runs = [run("a", 0.5, at=1), run("b", 0.4, at=2), run("c", 0.6, at=3), run("d", 0.7, at=4), run("e", 0.8, at=5)]
    found = reasons(backtest(runs, REQUIRED, evidence))
    assert found == ["first_model", "not_best", "within_noise", "improved", "improved"]
    assert asked == [("run-c", "run-a", 2), ("run-d", "run-a", 3), ("run-e", "run-d", 1)]


def test_without_answers_to_pair_a_required_interval_leaves_it_undecided() -> None:
    assert reasons(backtest([run("a", 0.5), run("b", 0.6, at=2)], REQUIRED, none)) == ["first_model", "incomparable"]


def number(asked: Question) -> int:
    """Of the challenger: models evaluated since the last promotion and never promoted count."""
    since, known = counted_since(asked.ledger, None), {each.model_digest for each in asked.ledger.slots}
    others = {run.model_digest for run in asked.history if run.finished_at > since}
    return 1 + len(others - known - {asked.challenger.model_digest})


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("policy", [POLICY, REQUIRED], ids=["report", "require"])
def test_it_decides_as_the_gate_does_over_the_whole_history(seed: int, policy: Policy) -> None:
    rng = random.Random(seed)
    runs = [run(f"m{rng.randrange(12)}", round(rng.uniform(0.4, 0.41), 4), run_id=f"r{k}", at=60_000 * k)
            for k in range(1, 40)]
    view = LedgerView(())
    history: list[ScoredRun] = []
    found: list[tuple[str, Decimal | None]] = []
    for challenger in runs:
        asked = question(challenger, history, view, policy=policy)
        lucky = gain(0.001 if number(asked) % 2 else -0.001)
        decision = decide(replace(asked, evidence=lucky))
        if decision.verdict is Verdict.PROMOTE:
            at = challenger.finished_at // 60_000
            view = LedgerView((*view.slots, slot(view, "x", 0.4, model_digest=challenger.model_digest,
                                                 time=f"1970-01-01T00:{at:02d}:00+00:00")))
        history.append(challenger)
        found.append((decision.reason.value, decision.gain))

    steps = backtest(runs, policy, lambda *asked: gain(0.001 if asked[-1] % 2 else -0.001))
    assert [(step.reason, step.gain) for step in steps] == found


def test_settings_change_the_policy_and_nothing_else(params: DeploymentParams) -> None:
    found = changed(params, ["weights.bleu4=0.5", "weights.bleu1=0", "threshold=0.01", "significance=require"])
    weights = {**params.weighted_scoring.weights, "bleu4": 0.5, "bleu1": 0.0}
    assert Policy.from_params(found) == Policy(weights, Decimal("0.01"), require_significance=True, confidence=0.95)
    assert found.model_copy(update={"weighted_scoring": params.weighted_scoring, "significance": params.significance,
                                    "min_improvement_threshold": params.min_improvement_threshold}) == params


@pytest.mark.parametrize(("setting", "message"), [
    ("weights.bleu4=0.5", r"--set: weighted_scoring.weights: sum is 1.1, expected 1.0"),
    ("weights.bleu5=0.1", "--set weights.bleu5=0.1: unknown"),
    ("bleu4=0.4", "--set bleu4=0.4: unknown"),
    ("confidence=0.9", "--set confidence=0.9: unknown"),
    ("threshold", "'' is not a number"),
    ("threshold=much", "'much' is not a number"),
    ("threshold=nan", "min_improvement_threshold"),
    ("threshold=-0.1", "min_improvement_threshold"),
    ("weights.bleu4=inf", "weights"),
    ("significance=sometimes", "significance"),
])
def test_a_wrong_setting_is_refused_by_name(params: DeploymentParams, setting: str, message: str) -> None:
    with pytest.raises(InvalidParams, match=message):
        changed(params, [setting])


def test_steps_are_json(params: DeploymentParams) -> None:
    first, second = backtest([run("a", 0.5, at=1), run("b", 0.6, at=2)], POLICY, none)
    assert (first.as_json()["gain"], second.as_json()["gain"]) == (None, 0.1)
    assert set(first.as_json()) == {"run_id", "finished", "score", "gain", "decision", "reason"}
