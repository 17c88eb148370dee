"""The paired bootstrap, which shows whether a gain is more than noise, on rows that both models answered.

There are two kinds of intervals. A score has the percentile interval that sacrebleu prints. A gain, which the gate
decides on, has a t interval around the observed gain with the bootstrap's standard error. On simulated evaluations
(2,000 to 3,000 trials each, two kinds of answers, equal models and a true gain of 0.02) its 95 % interval covered the
truth in 94.3 to 96.1 % of trials with 15 to 1,000 rows. Percentile, basic and BCa intervals agree with it from
300 rows on and fall to 90, 92 and 88 % below that; at 99.75 %, which the 20th challenger needs, they rest on the
two or three most extreme of 2,000 resamples. docs/significance.md has its coverage on real answers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from src.core.errors import InvalidInput
from src.core.params import METRICS, DeploymentParams
from src.evaluation.metrics import (
    RowStatistics,
    corpus_scores,
    row_contributions,
    row_counts,
    scores_of_counts,
    weight_vector,
)
from src.evaluation.predictions import Prediction, VerifiedRows, rows_to_verify
from src.model_selection import GainEvidence, Policy

RESAMPLES = 2000  # the standard error that they give is good to 1.6 %
POWER = 0.8  # a gain is called detectable when four evaluations in five would show it
_DECIMALS = 9  # kept of a score: far above the last bit, which may differ between processors
_BLOCK_CELLS = 2**20  # of the resampling matrix, held at once: 8 MB


def paired_bootstrap(challenger: RowStatistics, baseline: RowStatistics, *, weights: Mapping[str, float],
                     threshold: float, confidence: float, resamples: int, seed: int) -> GainEvidence:
    """Evidence for the gain of `challenger` over `baseline`; both hold the same rows in the same order.

    Equal arguments give equal results, bit for bit. Raises InvalidInput for different numbers of rows.
    Source: Koehn, Statistical significance tests for machine translation evaluation (2004).
    """
    rows = len(challenger)
    if rows != len(baseline):
        raise InvalidInput(f"{rows} rows of the challenger against {len(baseline)} of the baseline; pair them first")
    vector, systems = weight_vector(weights), (challenger, baseline)
    ours, theirs = (scores @ vector for scores in _resample(systems, resamples=resamples, seed=seed))
    observed = [np.array(list(corpus_scores(system).values())) @ vector for system in systems]
    gain = round(float(observed[0] - observed[1]), _DECIMALS)
    gains = np.round(ours - theirs, _DECIMALS)
    margin, detectable = _margins(float(np.std(gains, ddof=1)), rows=rows, confidence=confidence)
    return GainEvidence(
        gain=gain,
        low=round(max(-1.0, gain - margin), _DECIMALS),
        high=round(min(1.0, gain + margin), _DECIMALS),
        confidence=confidence, threshold=threshold,
        p_value=paired_p_value(ours, theirs, difference=gain),
        p_gain_positive=float(np.mean(gains > 0)),
        p_gain_at_least_threshold=float(np.mean(gains >= round(threshold, _DECIMALS))),
        minimum_detectable_gain=round(detectable, _DECIMALS),
        rows_needed=_rows_needed(detectable, threshold=threshold, rows=rows, confidence=confidence),
        rows=rows, resamples=resamples, seed=seed)


def gain_evidence(challenger: Sequence[Prediction], baseline: Sequence[Prediction], *, policy: Policy, contract: str,
                  params: DeploymentParams, challengers: int | None, resamples: int = RESAMPLES) -> GainEvidence:
    """The paired bootstrap on the rows that both models answered.

    For the k-th challenger since the last promotion the confidence is raised; challengers is None if significance is
    not required.
    """
    ours, theirs = shared_rows([row.id for row in challenger], [row.id for row in baseline])
    confidence = params.confidence if challengers is None else adjusted_confidence(params.confidence, challengers)
    return paired_bootstrap(
        RowStatistics.from_rows([row.stats for row in challenger]).take(ours),
        RowStatistics.from_rows([row.stats for row in baseline]).take(theirs),
        weights=policy.weights, threshold=float(policy.threshold), confidence=confidence,
        resamples=resamples, seed=seed_from(contract))


def choose_rows(challenger: Sequence[Prediction], baseline: Sequence[Prediction] | None, shuffled: Sequence[int],
                weights: Mapping[str, float], *, count: int) -> VerifiedRows:
    """The answers that the release has to give again: the `count` that gain most over the baseline, and `count` drawn.

    A row's gain is its `row_contributions`: what the corpus score would lose with the baseline's answer in its place.
    These add up to the gain, near enough, so that the fewer rows a forged gain rests on, the higher they rank. Without
    a baseline, or one that answered other rows, it is what the score would lose without the row. shuffled: all places,
    in an order that nobody who wrote the answers could know; it finds gains that are spread over many rows.
    """
    ours = RowStatistics.from_rows([row.stats for row in challenger])
    pairs = {row.id: row.stats for row in baseline or ()}
    theirs = None
    if all(row.id in pairs for row in challenger):
        theirs = RowStatistics.from_rows([pairs[row.id] for row in challenger])
    return rows_to_verify(row_contributions(ours, theirs, weights).tolist(), shuffled, count)


def score_intervals(statistics: RowStatistics, *, weights: Mapping[str, float], confidence: float, seed: int,
                    resamples: int = RESAMPLES) -> dict[str, tuple[float, float]]:
    """The percentile interval of each of METRICS and of `weighted_score`, each (low, high) in [0, 1]."""
    (scores,) = _resample((statistics,), resamples=resamples, seed=seed)
    columns = dict(zip(METRICS, scores.T, strict=True)) | {"weighted_score": scores @ weight_vector(weights)}
    return {name: percentile_interval(column, confidence=confidence) for name, column in columns.items()}


@dataclass(frozen=True)
class GroupScore:
    """The weighted score of some of the rows, and the gain over another model on them.

    interval: (low, high) of the score; None if there are too few rows for one. gain: None without another model.
    """

    rows: int
    score: float
    interval: tuple[float, float] | None
    gain: GainEvidence | None


def group_score(ours: RowStatistics, theirs: RowStatistics | None, *, weights: Mapping[str, float], confidence: float,
                seed: int) -> GroupScore:
    """The score of the rows of one group, for example of one intent; both models answered the same rows.

    A group has few rows, for which percentile intervals are too narrow. So the score, like a gain, has a t interval
    with the standard error that the bootstrap estimates (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 12). It is cut to [0, 1].
    """
    vector, rows = weight_vector(weights), len(ours)
    score = round(float(np.array(list(corpus_scores(ours).values())) @ vector), _DECIMALS)
    interval = None
    if rows >= least_rows(confidence):
        (scores,) = _resample((ours,), resamples=RESAMPLES, seed=seed)
        margin, _ = _margins(float(np.std(scores @ vector, ddof=1)), rows=rows, confidence=confidence)
        interval = max(0.0, score - margin), min(1.0, score + margin)
    gain = None if theirs is None else paired_bootstrap(
        ours, theirs, weights=weights, threshold=0.0, confidence=confidence, resamples=RESAMPLES, seed=seed)
    return GroupScore(rows, score, interval, gain)


def percentile_interval(samples: NDArray[np.float64], *, confidence: float) -> tuple[float, float]:
    """The middle `confidence` of resampled scores, by the order statistics that sacrebleu's estimate_ci takes."""
    ordered = np.sort(samples)
    outside = int(round(len(ordered) * (1 - confidence) / 2, _DECIMALS))
    return round(float(ordered[outside]), _DECIMALS), round(float(ordered[-1 - outside]), _DECIMALS)


def paired_p_value(ours: NDArray[np.float64], theirs: NDArray[np.float64], *, difference: float) -> float:
    """P-value of an observed score difference from paired resampled scores, as sacrebleu's PairedTest.

    It is 1 if no resample differs; sacrebleu reports its smallest p-value for such systems.
    """
    differences = np.abs(ours - theirs)
    if not differences.any():
        return 1.0
    beyond = np.sum(differences - differences.mean() > abs(difference))
    return float((beyond + 1) / (len(differences) + 1))


def shared_rows(challenger: Sequence[str], baseline: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of the row ids that both have, in the challenger's order: for `RowStatistics.take`.

    Raises InvalidInput if one side has an id twice, or if no id is shared.
    """
    for ids in (challenger, baseline):
        if len(set(ids)) != len(ids):
            raise InvalidInput("a row id occurs twice among the evaluated rows; run the evaluation again")
    places = {row_id: place for place, row_id in enumerate(baseline)}
    pairs = [(place, places[row_id]) for place, row_id in enumerate(challenger) if row_id in places]
    if not pairs:
        raise InvalidInput("challenger and baseline share no evaluation row; evaluate both on the same split")
    ours, theirs = np.array(pairs, dtype=np.intp).T
    return ours, theirs


def adjusted_confidence(confidence: float, challengers: int) -> float:
    """Confidence of the k-th challenger's interval since the last promotion: 1 - 2 * alpha / (k * (k + 1)), k from 1.

    alpha is 1 - confidence. A challenger is promoted only if its interval lies above 0. For one that is no better than
    the champion this happens with a chance of half of what the interval leaves out: alpha / (k * (k + 1)). Since
    1 / (k * (k + 1)) = 1 / k - 1 / (k + 1), the first n of these chances add up to alpha * (1 - 1 / (n + 1)). So with
    any number of challengers, and however they depend on each other, the chance of even one false promotion before
    the next true one is below alpha. The first challenger's interval has the stated confidence.
    """
    if challengers < 1:
        raise ValueError(f"challengers are counted from 1, found {challengers}")
    return round(1 - 2 * (1 - confidence) / (challengers * (challengers + 1)), 12)


def seed_from(contract_hex: str) -> int:
    """A seed of 48 bits from the score contract (sha256, hex); every JSON reader keeps 48 bits exactly."""
    return int(contract_hex[:12], 16)


def least_rows(confidence: float) -> int:
    """The smallest number of rows on which a gain can show: chance makes every row better in 2 of 2**rows cases.

    A confidence that rounds to 1, as it does from the 316,228th challenger on, counts as 1 - 1e-12.
    """
    return math.ceil(1 - math.log2(max(1 - confidence, 1e-12)))


def _resample(systems: Sequence[RowStatistics], *, resamples: int, seed: int) -> list[NDArray[np.float64]]:
    """Corpus scores of each system on the same resampled rows, one float (resamples, 5) each."""
    rng, rows = np.random.default_rng(seed), len(systems[0])
    step, blocks = max(1, _BLOCK_CELLS // rows), []
    for start in range(0, resamples, step):
        counts = row_counts(rng.integers(rows, size=(min(step, resamples - start), rows)), rows)
        blocks.append([scores_of_counts(system, counts) for system in systems])
    return [np.concatenate(scores) for scores in zip(*blocks, strict=True)]


def _margins(deviation: float, *, rows: int, confidence: float) -> tuple[float, float]:
    """Half the interval's width, and the smallest gain that shows with POWER, from the resampled gains' deviation.

    The bootstrap's variance is (rows - 1) / rows of the unbiased one. With too few rows the result is (2, 1): the
    interval is all of [-1, 1].
    """
    if rows < least_rows(confidence):
        return 2.0, 1.0
    standard_error = deviation * math.sqrt(rows / (rows - 1))
    margin = float(stdtrit(rows - 1, (1 + confidence) / 2)) * standard_error
    return margin, min(1.0, margin + float(stdtrit(rows - 1, POWER)) * standard_error)


def _rows_needed(detectable: float, *, threshold: float, rows: int, confidence: float) -> int | None:
    """Rows with which a gain of `threshold` would show: the standard error falls with the square root of the rows."""
    if threshold <= 0:
        return None
    return max(least_rows(confidence), math.ceil(rows * (detectable / threshold) ** 2))
