"""The evidence for a gain, as a value: src.significance computes it, the gate and the records read it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GainEvidence:
    """What `rows` shared rows say about the gain of a challenger over a baseline; scores are in [0, 1].

    gain: weighted score of the challenger minus that of the baseline, on these rows.
    low, high: its interval at `confidence`, within [-1, 1].
    p_value: what sacrebleu's PairedTest would print; for comparison only, nothing is decided by it.
    p_gain_positive, p_gain_at_least_threshold: share of resamples with gain > 0, and with gain >= threshold.
    minimum_detectable_gain: the smallest true gain that so many rows would show, at `confidence`, 4 times in 5.
    rows_needed: rows with which a true gain of `threshold` would show as often; None for a threshold of 0.
    """

    gain: float
    low: float
    high: float
    confidence: float
    threshold: float
    p_value: float
    p_gain_positive: float
    p_gain_at_least_threshold: float
    minimum_detectable_gain: float
    rows_needed: int | None
    rows: int
    resamples: int
    seed: int

    @property
    def includes_zero(self) -> bool:
        """Whether the two models may be equally good."""
        return self.low <= 0 <= self.high
