"""The charts of a report, each with what it shows in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src import charts
from src.params import METRICS
from src.report_records import Losses

WEIGHTED = "weighted_score"
NAMES = {WEIGHTED: "Weighted score", "bleu1": "BLEU-1", "bleu2": "BLEU-2", "bleu3": "BLEU-3", "bleu4": "BLEU-4",
         "rougeL_precision": "ROUGE-L precision"}
SIDES = {"best_evaluated": "best evaluated", "best_promoted": "best promoted", "champion": "champion"}


@dataclass(frozen=True)
class Score:
    """A line of the score table; weight and contribution are None for the weighted score itself."""

    name: str
    value: float
    low: float
    high: float
    weight: float | None
    contribution: float


@dataclass(frozen=True)
class Side:
    """A model in the side-by-side table; delta is the challenger's score minus its own, None for the challenger."""

    name: str
    run_id: str
    score: float
    delta: float | None
    metrics: Mapping[str, float]
    contributions: Mapping[str, float]


@dataclass(frozen=True)
class Chart:
    """Drawings of one thing, the narrow one last where there are two, and what they show in words."""

    drawings: tuple[str, ...]
    words: str


def draw(scores: Sequence[Score], sides: Sequence[Side], gain: Mapping[str, Any] | None,
         points: Sequence[charts.Point], losses: Losses | None) -> dict[str, Chart]:
    """The charts by name; gain, history and losses are left out where there are none."""
    made = {"scores": _score_chart(scores, sides), "contributions": _contribution_chart(sides)}
    if gain:
        drawing = charts.gain(gain["gain"], gain["low"], gain["high"], gain["threshold"])
        made["gain"] = Chart((drawing,), f"Gain {gain['gain']:+.4f}, interval {gain['low']:+.4f} to "
                                         f"{gain['high']:+.4f}, threshold {gain['threshold']:g}.")
    if points:
        made["history"] = Chart(_both(lambda width: charts.history(points, width=width)), _history_words(points))
    if losses:
        train, validation = losses.train, losses.validation
        made["losses"] = Chart((charts.losses(train, validation),), f"Over {len(train)} epochs the training loss went "
                               f"from {train[0]:.3f} to {train[-1]:.3f}, the validation loss from {validation[0]:.3f} "
                               f"to {validation[-1]:.3f}; its lowest was {min(validation):.3f}.")
    return made


def _both(drawn: Callable[[float], str]) -> tuple[str, str]:
    return drawn(charts.WIDE), drawn(charts.NARROW)


def _score_chart(scores: Sequence[Score], sides: Sequence[Side]) -> Chart:
    promoted = next((side for side in sides if side.name == SIDES["best_promoted"]), None)
    others = {WEIGHTED: promoted.score, **promoted.metrics} if promoted else {}
    rows = [charts.Interval(NAMES[s.name], s.value, s.low, s.high, others.get(s.name)) for s in scores]
    return Chart((charts.scores(rows),), "; ".join(f"{row.name} {row.value:.4f}, interval {row.low:.4f} to "
                                                   f"{row.high:.4f}" for row in rows) + ".")


def _contribution_chart(sides: Sequence[Side]) -> Chart:
    bars: dict[str, Mapping[str, float]] = {}
    for run_id in dict.fromkeys(side.run_id for side in sides):
        same = [side for side in sides if side.run_id == run_id]
        bars[", ".join(side.name for side in same)] = {NAMES[m]: same[0].contributions[m] for m in METRICS}
    words = (f"{name}: " + ", ".join(f"{m} {part:.4f}" for m, part in parts.items()) for name, parts in bars.items())
    return Chart(_both(lambda width: charts.contributions(bars, width=width)), "; ".join(words) + ".")


def _history_words(points: Sequence[charts.Point]) -> str:
    promoted = [f"version {point.promoted} at {point.score:.4f}" for point in points if point.promoted is not None]
    lowest, highest = min(point.score for point in points), max(point.score for point in points)
    return (f"{len(points)} evaluations with weighted scores from {lowest:.4f} to {highest:.4f}; promoted: "
            f"{', '.join(promoted) or 'none'}.")
