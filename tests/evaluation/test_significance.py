"""The paired bootstrap against sacrebleu's PairedTest and Student's interval."""

import random
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest, Result
from scipy.stats import ttest_rel

from src.core.errors import InvalidInput
from src.evaluation.metrics import RowStatistics, corpus_scores, row_counts, row_statistics, scores_of_counts
from src.evaluation.significance import (
    adjusted_confidence,
    least_rows,
    paired_bootstrap,
    paired_p_value,
    percentile_interval,
    score_intervals,
    seed_from,
    shared_rows,
)
from src.model_selection import GainEvidence

WEIGHTS = {"bleu1": 0.10, "bleu2": 0.15, "bleu3": 0.25, "bleu4": 0.40, "rougeL_precision": 0.10}
BLEU4 = dict.fromkeys(WEIGHTS, 0.0) | {"bleu4": 1.0}
ROUGE = dict.fromkeys(WEIGHTS, 0.0) | {"rougeL_precision": 1.0}
WORDS = ["your", "order", "plan", "page", "refund", "days", "card", "ships", "within", "three", "five", "call", "us"]
SACREBLEU_SEED = 12345
ROWS, RESAMPLES = 120, 1000

# What the gate once recorded for these answers; a replay must give the same bits.
GOLDEN = {
    "gain": 0.040500235, "low": -0.000626515, "high": 0.081626985, "confidence": 0.95, "threshold": 0.001,
    "p_value": 0.02197802197802198, "p_gain_positive": 0.974, "p_gain_at_least_threshold": 0.973,
    "minimum_detectable_gain": 0.058670207, "rows_needed": 413064, "rows": 120, "resamples": 1000,
    "seed": 1250999896491,
}


def answers(references: list[str], *, wrong: float, seed: int) -> list[str]:
    """The references with a share of their words replaced."""
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) if rng.random() < wrong else w for w in text.split()) for text in references]


@cache
def texts(rows: int = ROWS) -> tuple[list[str], list[str], list[str]]:
    """Answers of a slightly better challenger, of a baseline, and the references."""
    rng = random.Random(3)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(4, 30))) for _ in range(rows)]
    return answers(references, wrong=0.3, seed=1), answers(references, wrong=0.32, seed=8), references


def systems(rows: int = ROWS) -> tuple[RowStatistics, RowStatistics]:
    challenger, baseline, references = texts(rows)
    return row_statistics(challenger, references, "13a"), row_statistics(baseline, references, "13a")


CHALLENGER, BASELINE = systems()


def evidence(challenger: RowStatistics = CHALLENGER, baseline: RowStatistics = BASELINE, **changes: object
             ) -> GainEvidence:
    arguments = {"weights": WEIGHTS, "threshold": 0.001, "confidence": 0.95, "resamples": RESAMPLES, "seed": 7}
    return paired_bootstrap(challenger, baseline, **(arguments | changes))  # type: ignore[arg-type]


def test_systems_of_different_rows_are_refused() -> None:
    with pytest.raises(InvalidInput, match="119 rows of the challenger against 120"):
        evidence(CHALLENGER.take(np.arange(ROWS - 1)), BASELINE)


@pytest.mark.parametrize(("challenger", "baseline", "problem"), [
    (["a", "b", "a"], ["a", "b"], "occurs twice"), (["a", "b"], ["b", "b"], "occurs twice"),
    (["a", "b"], ["c"], "share no evaluation row"), ([], [], "share no evaluation row"),
])
def test_rows_that_cannot_be_paired_are_refused(challenger: list[str], baseline: list[str], problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        shared_rows(challenger, baseline)


def test_shared_rows_are_paired_by_id_in_the_challengers_order() -> None:
    ours, theirs = shared_rows(["d", "a", "x", "b"], ["a", "b", "c", "d"])
    assert (ours.tolist(), theirs.tolist()) == ([0, 1, 3], [3, 0, 1])


def test_a_challenger_number_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        adjusted_confidence(0.95, 0)


@pytest.mark.parametrize(("confidence", "challengers", "expected"), [
    (0.95, 1, 0.95), (0.95, 2, 0.983333333333), (0.95, 20, 0.999761904762), (0.9, 4, 0.99), (0.9, 1, 0.9),
    (0.99, 10, 0.999818181818), (0.95, 10**7, 1.0)])
def test_confidence_grows_with_the_challengers(confidence: float, challengers: int, expected: float) -> None:
    assert adjusted_confidence(confidence, challengers) == expected


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_however_many_challengers_there_are_their_chances_of_a_false_promotion_add_up_to_less_than_alpha(
    confidence: float,
) -> None:
    alpha, levels = 1 - confidence, [adjusted_confidence(confidence, k) for k in range(1, 20_001)]
    spent = np.cumsum([(1 - level) / 2 for level in levels])  # an interval is above 0 in half of what it leaves out
    for count in (1, 20, 100, 500, 20_000):
        assert spent[count - 1] == pytest.approx(alpha * (1 - 1 / (count + 1)), abs=1e-8)
    assert spent[-1] < alpha
    assert levels == sorted(levels)


def test_a_challenger_of_a_number_that_nobody_reaches_can_show_nothing_and_nothing_breaks() -> None:
    found = evidence(confidence=adjusted_confidence(0.95, 10**9))
    assert (found.confidence, found.low, found.high, found.includes_zero) == (1.0, -1, 1, True)
    assert least_rows(1.0) == 41


@pytest.mark.parametrize(("confidence", "expected"), [(0.9, 5), (0.95, 6), (0.9975, 10)])
def test_fewer_rows_than_a_sign_test_needs_show_nothing(confidence: float, expected: int) -> None:
    assert least_rows(confidence) == expected
    references = [f"{WORDS[n % 9]} order is on page {n}" for n in range(expected)]
    worse = [text.replace("on page", f"at {text[0]} page") for text in references]
    challenger, baseline = row_statistics(references, references, "13a"), row_statistics(worse, references, "13a")
    for rows in range(1, expected):
        found = evidence(challenger.take(np.arange(rows)), baseline.take(np.arange(rows)), confidence=confidence)
        assert found.gain > 0.2
        assert (found.low, found.high, found.includes_zero) == (-1, 1, True)
    assert not evidence(challenger, baseline, confidence=confidence).includes_zero


def test_equal_answers_have_no_gain_and_no_doubt() -> None:
    found = evidence(CHALLENGER, CHALLENGER)
    assert (found.gain, found.low, found.high, found.includes_zero) == (0, 0, 0, True)
    assert (found.p_gain_positive, found.p_gain_at_least_threshold, found.p_value) == (0, 0, 1)


def test_one_better_answer_of_many_is_within_noise() -> None:
    _, baseline, references = texts()
    challenger = [references[0], *baseline[1:]]
    found = evidence(row_statistics(challenger, references, "13a"), row_statistics(baseline, references, "13a"))
    assert found.gain > 0.001
    assert found.includes_zero


@pytest.fixture(scope="module")
def paired_test() -> list[Result]:
    """sacrebleu's own results for the baseline and the challenger, in 0..100."""
    challenger, baseline, references = texts()
    named = [("baseline", baseline), ("challenger", challenger)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SACREBLEU_SEED", str(SACREBLEU_SEED))
        test = PairedTest(named, {"BLEU": BLEU()}, [references], test_type="bs", n_samples=RESAMPLES)
        return list(test()[1]["BLEU"])


def test_mean_interval_and_p_value_equal_sacrebleus_paired_test(paired_test: list[Result]) -> None:
    indices = np.random.default_rng(SACREBLEU_SEED).choice(ROWS, size=(RESAMPLES, ROWS), replace=True)
    counts = row_counts(indices, ROWS)
    resampled = {system: scores_of_counts(system, counts)[:, 3] for system in (BASELINE, CHALLENGER)}
    for theirs, (system, scores) in zip(paired_test, resampled.items(), strict=True):
        low, high = percentile_interval(scores, confidence=0.95)
        assert corpus_scores(system)["bleu4"] == pytest.approx(theirs.score / 100, abs=1e-9)
        assert scores.mean() == pytest.approx(theirs.mean / 100, abs=1e-6)
        assert (high - low) / 2 == pytest.approx(theirs.ci / 100, abs=1e-6)
    difference = corpus_scores(CHALLENGER)["bleu4"] - corpus_scores(BASELINE)["bleu4"]
    p_value = paired_p_value(resampled[CHALLENGER], resampled[BASELINE], difference=difference)
    assert p_value == pytest.approx(paired_test[1].p_value, abs=1e-6)
    assert 0.005 < p_value < 0.5  # a p-value that could have been missed


def test_the_bootstrap_draws_sacrebleus_resamples_for_the_same_seed(paired_test: list[Result]) -> None:
    found = evidence(weights=BLEU4, seed=SACREBLEU_SEED)
    assert found.p_value == pytest.approx(paired_test[1].p_value, abs=1e-6)
    settings = {"weights": BLEU4, "confidence": 0.95, "resamples": RESAMPLES, "seed": SACREBLEU_SEED}
    for theirs, system in zip(paired_test, (BASELINE, CHALLENGER), strict=True):
        low, high = score_intervals(system, **settings)["weighted_score"]  # type: ignore[arg-type]
        assert (high - low) / 2 == pytest.approx(theirs.ci / 100, abs=1e-6)


@pytest.mark.parametrize("rows", [8, 40, ROWS])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.9975])
def test_on_a_mean_over_rows_the_interval_is_students(rows: int, confidence: float) -> None:
    challenger, baseline = systems(rows)
    found = evidence(challenger, baseline, weights=ROUGE, confidence=confidence, resamples=20_000)
    student = ttest_rel(challenger.rouge_l, baseline.rouge_l).confidence_interval(confidence)
    assert found.gain == pytest.approx((student.low + student.high) / 2, abs=1e-9)
    if rows >= least_rows(confidence):
        assert found.high - found.low == pytest.approx(student.high - student.low, rel=0.03)


def test_every_metric_and_the_weighted_score_has_an_interval_around_it() -> None:
    intervals = score_intervals(CHALLENGER, weights=WEIGHTS, confidence=0.95, resamples=RESAMPLES, seed=7)
    scores = corpus_scores(CHALLENGER)
    scores["weighted_score"] = sum(scores[name] * weight for name, weight in WEIGHTS.items())
    assert list(intervals) == list(scores)
    assert all(0 < low < scores[name] < high < 1 for name, (low, high) in intervals.items())


def test_the_gain_is_the_difference_of_the_weighted_scores() -> None:
    ours, theirs = corpus_scores(CHALLENGER), corpus_scores(BASELINE)
    expected = sum(weight * (ours[name] - theirs[name]) for name, weight in WEIGHTS.items())
    found = evidence()
    assert found.gain == pytest.approx(expected, abs=1e-9)
    assert found.low < found.gain < found.high


def test_exchanging_the_systems_turns_the_interval_round() -> None:
    there, back = evidence(), evidence(BASELINE, CHALLENGER)
    assert (back.gain, back.low, back.high) == (-there.gain, -there.high, -there.low)
    assert back.p_gain_positive == pytest.approx(1 - there.p_gain_positive, abs=1e-9)


def test_probabilities_count_resamples_and_fall_with_the_threshold() -> None:
    found = [evidence(threshold=t).p_gain_at_least_threshold for t in (0.0, 0.01, 0.02, 0.5)]
    assert found == sorted(found, reverse=True)
    assert found[0] >= evidence().p_gain_positive > found[2] > found[3] == 0


def test_a_higher_confidence_widens_the_interval_and_needs_more_rows() -> None:
    usual, twentieth = (evidence(confidence=c) for c in (0.95, 0.9975))
    assert twentieth.low < usual.low < usual.high < twentieth.high
    assert twentieth.minimum_detectable_gain > usual.minimum_detectable_gain
    assert (twentieth.rows_needed or 0) > (usual.rows_needed or 0)


def test_rows_needed_fall_with_the_square_of_the_threshold_and_none_are_for_a_threshold_of_zero() -> None:
    detectable = evidence().minimum_detectable_gain
    needed = [evidence(threshold=detectable * factor).rows_needed for factor in (1, 0.5, 0.1)]
    assert needed == pytest.approx([ROWS, 4 * ROWS, 100 * ROWS], abs=1)
    assert evidence(threshold=0.0).rows_needed is None


def test_equal_arguments_give_equal_bits_and_the_seed_matters() -> None:
    first = evidence()
    restored = [RowStatistics.from_rows(system.to_rows()) for system in (CHALLENGER, BASELINE)]
    assert evidence(*restored) == first
    assert replace(evidence(seed=8), seed=7) != first


def test_blocks_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = evidence()
    monkeypatch.setattr("src.evaluation.significance._BLOCK_CELLS", 7 * ROWS)
    assert evidence() == at_once


def test_a_stored_decision_replays_to_the_same_evidence() -> None:
    found = asdict(evidence(seed=seed_from("0123456789ab" + "0" * 52)))
    assert found == GOLDEN


def test_the_seed_is_the_contracts_and_fits_every_json_reader() -> None:
    assert seed_from("0123456789ab" + "f" * 52) == 0x0123456789AB
    assert seed_from("f" * 64) < 2**53
