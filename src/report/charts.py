"""The charts of the report: SVG drawings, and a sentence for each that says what it shows.

Colours are CSS variables of the page, so the charts follow its light and dark mode. Equal data give equal bytes.
matplotlib is imported only when a chart is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from src.core.params import METRIC_NAMES, METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Placeholder colours for matplotlib; in its output they are replaced by the CSS variables of report.html.j2.
_INK, _MUTED, _LINE, _CARD, _OURS, _THEIRS = ("#00000" + digit for digit in "123456")
_SHADES = tuple("#00001" + digit for digit in "12345")
_VARIABLES = {_INK: "ink", _MUTED: "muted", _LINE: "line", _CARD: "card", _OURS: "ours", _THEIRS: "theirs",
              **{shade: f"shade-{number}" for number, shade in enumerate(_SHADES, start=1)}}
_STYLE: dict[Any, Any] = {  # matplotlib types the keys as literals
    "svg.fonttype": "none", "font.size": 11, "axes.labelsize": 11, "xtick.labelsize": 10.5, "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5, "legend.frameon": False, "text.color": _INK, "axes.labelcolor": _MUTED,
    "xtick.color": _LINE, "ytick.color": _LINE, "xtick.labelcolor": _MUTED, "ytick.labelcolor": _MUTED,
    "axes.edgecolor": _LINE, "axes.linewidth": 1, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": _LINE, "grid.linewidth": 0.8, "xtick.major.size": 0,
    "ytick.major.size": 0, "lines.linewidth": 2, "lines.solid_capstyle": "round", "axes.formatter.useoffset": False,
}
NARROW, WIDE = 4.7, 12.0  # widths in inches of 72 CSS pixels, before the page scales them
_DOTS = 60  # with more runs the history has no dots, only a line
_LABELS = 12  # with more promotions only the last one has a label
WEIGHTED = "weighted_score"
NAMES = {WEIGHTED: "Weighted score", **METRIC_NAMES}
SIDES = {"best_evaluated": "best evaluated", "best_promoted": "best promoted", "champion": "champion"}


@dataclass(frozen=True)
class Point:
    """One evaluation in the history; promoted is the version that it became, None if it was not promoted."""

    score: float
    promoted: int | None
    is_challenger: bool


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
class ComparedModel:
    """A model in the comparison table; delta is the challenger's score minus its own, None for the challenger."""

    name: str
    run_id: str
    score: float
    delta: float | None
    metrics: Mapping[str, float]
    contributions: Mapping[str, float]


@dataclass(frozen=True)
class Losses:
    """Mean loss per token, one value for each epoch."""

    train: Sequence[float]
    validation: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """A chart: one drawing, or a wide and a narrow one, and a sentence that says what they show."""

    drawings: tuple[str, ...]
    words: str


def draw(scores: Sequence[Score], sides: Sequence[ComparedModel], gain: Mapping[str, Any] | None,
         points: Sequence[Point], losses: Losses | None) -> dict[str, Chart]:
    """The charts by name; gain, history and losses are left out if they have no data."""
    made = {"scores": _score_chart(scores, sides), "contributions": _contribution_chart(sides)}
    if gain:
        drawing = _svg("gain", NARROW, 1.8, _draw_gain, gain["gain"], gain["low"], gain["high"], gain["threshold"])
        made["gain"] = Chart((drawing,), f"Gain {gain['gain']:+.4f}, interval {gain['low']:+.4f} to "
                                         f"{gain['high']:+.4f}, threshold {gain['threshold']:g}.")
    if points:
        made["history"] = Chart((_svg(f"history-{WIDE}", WIDE, 3.4, _draw_history, points),
                                 _svg(f"history-{NARROW}", NARROW, 2.8, _draw_history, points)), _history_words(points))
    if losses:
        train, validation = losses.train, losses.validation
        drawing = _svg("losses", NARROW, 2.8, _draw_losses, train, validation)
        made["losses"] = Chart((drawing,), f"Over {len(train)} epochs the training loss went from {train[0]:.3f} to "
                               f"{train[-1]:.3f}, the validation loss from {validation[0]:.3f} to "
                               f"{validation[-1]:.3f}; its lowest was {min(validation):.3f}.")
    return made


def _score_chart(scores: Sequence[Score], sides: Sequence[ComparedModel]) -> Chart:
    promoted = next((side for side in sides if side.name == SIDES["best_promoted"]), None)
    others = {WEIGHTED: promoted.score, **promoted.metrics} if promoted else {}
    words = (f"{NAMES[row.name]} {row.value:.4f}, interval {row.low:.4f} to {row.high:.4f}" for row in scores)
    return Chart((_svg("scores", NARROW, 3.1, _draw_scores, scores, others),), "; ".join(words) + ".")


def _contribution_chart(sides: Sequence[ComparedModel]) -> Chart:
    stacks: dict[str, Mapping[str, float]] = {}
    for run_id in dict.fromkeys(side.run_id for side in sides):
        same = [side for side in sides if side.run_id == run_id]
        stacks[", ".join(side.name for side in same)] = {NAMES[m]: same[0].contributions[m] for m in METRICS}
    words = (f"{name}: " + ", ".join(f"{m} {part:.4f}" for m, part in parts.items()) for name, parts in stacks.items())
    drawings = (_svg(f"contributions-{width}", width, 1.2 + 0.62 * len(stacks), _draw_contributions, stacks, columns)
                for width, columns in ((WIDE, len(_SHADES)), (NARROW, 3)))
    return Chart(tuple(drawings), "; ".join(words) + ".")


def _history_words(points: Sequence[Point]) -> str:
    promoted = [f"version {point.promoted} at {point.score:.4f}" for point in points if point.promoted is not None]
    lowest, highest = min(point.score for point in points), max(point.score for point in points)
    return (f"{len(points)} evaluations with weighted scores from {lowest:.4f} to {highest:.4f}; promoted: "
            f"{', '.join(promoted) or 'none'}.")


def _draw_scores(axes: Axes, rows: Sequence[Score], others: Mapping[str, float]) -> None:
    """A dot and its interval for each score, the first on top; others: the best promoted model's, by name."""
    places = range(len(rows))
    values = [row.value for row in rows]
    reach = [[max(0.0, row.value - row.low) for row in rows], [max(0.0, row.high - row.value) for row in rows]]
    axes.errorbar(values, places, xerr=reach, fmt="o", color=_OURS, capsize=4, elinewidth=2, label="challenger")
    if others:
        axes.plot([others[row.name] for row in rows], [place + 0.27 for place in places], "D", color=_THEIRS,
                  markersize=5.5, label="best promoted")
    axes.set_yticks(places, [NAMES[row.name] for row in rows])
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _legend(axes, reverse=True)


def _draw_gain(axes: Axes, value: float, low: float, high: float, threshold: float) -> None:
    """The gain with its interval, beside no gain at all and the threshold."""
    axes.axvline(0, color=_MUTED, linewidth=1.2)
    axes.axvline(threshold, color=_THEIRS, linewidth=1.8, linestyle=(0, (4, 3)), label=f"threshold {threshold:g}")
    axes.errorbar([value], [0], xerr=[[value - low], [high - value]], fmt="o", color=_OURS, capsize=6,
                  elinewidth=2.5, markersize=8, label=f"gain {value:+.4f}")
    axes.set_yticks([])
    axes.set_ylim(-1, 1)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.15)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("weighted score of the challenger minus the best promoted")
    _legend(axes, reverse=True)


def _draw_contributions(axes: Axes, sides: Mapping[str, Mapping[str, float]], columns: int) -> None:
    """One stacked bar for each model, made of weight x metric, the first on top."""
    starts = [0.0] * len(sides)
    for metric, shade in zip(next(iter(sides.values())), _SHADES, strict=True):
        parts = [side[metric] for side in sides.values()]
        axes.barh(range(len(sides)), parts, left=starts, height=0.45, color=shade, edgecolor=_CARD, label=metric)
        starts = [start + part for start, part in zip(starts, parts, strict=True)]
    for place, (name, total) in enumerate(zip(sides, starts, strict=True)):
        axes.annotate(name.capitalize(), (0, place - 0.24), (0, 3), textcoords="offset points")
        axes.annotate(f"{total:.4f}", (total, place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks([])
    axes.set_ylim(len(sides) - 0.5, -0.65)
    axes.set_xlim(0, 1.14 * max(starts) or 1)
    axes.grid(visible=False, axis="y")
    _legend(axes, columns=columns)


def _draw_history(axes: Axes, points: Sequence[Point]) -> None:
    """The scores in order of evaluation, with promotions marked."""
    marker = "o" if len(points) <= _DOTS else ""
    axes.plot(range(1, len(points) + 1), [point.score for point in points], marker=marker, markersize=4.5,
              color=_MUTED, linewidth=1.4, label="evaluated")
    promoted = [(place, point) for place, point in enumerate(points, start=1) if point.promoted is not None]
    few = len(promoted) <= _LABELS
    axes.plot([place for place, _ in promoted], [point.score for _, point in promoted], "D", color=_THEIRS,
              markersize=7.5 if few else 5, label="promoted")
    for place, point in promoted if few else promoted[-1:]:
        axes.annotate(f"v{point.promoted}", (place, point.score), (0, 10), textcoords="offset points", ha="center")
    own = [(place, point.score) for place, point in enumerate(points, start=1) if point.is_challenger]
    if own:
        axes.plot(*zip(*own, strict=True), "o", markerfacecolor="none", markeredgecolor=_OURS, markeredgewidth=2,
                  markersize=14, label="this challenger")
    axes.margins(y=0.22)
    room = max(0.5, 0.04 * len(points))
    axes.set_xlim(1 - room, len(points) + room)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.set_xlabel("evaluation, oldest first")
    axes.set_ylabel("weighted score")
    _legend(axes)


def _draw_losses(axes: Axes, train: Sequence[float], validation: Sequence[float]) -> None:
    """Training and validation loss of each epoch, from 1; the epoch that was kept is marked."""
    epochs = range(1, len(train) + 1)
    best = min(range(len(validation)), key=lambda place: validation[place])
    axes.plot(epochs, train, "o-", color=_OURS, markersize=4.5, label="training")
    axes.plot(epochs, validation, "s--", color=_THEIRS, markersize=4.5, label="validation")
    axes.plot([best + 1], [validation[best]], "o", markerfacecolor="none", markeredgecolor=_INK, markersize=13,
              label="kept epoch")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.set_xlim(0.7, len(train) + 0.3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss on the answers")
    _legend(axes)


def _legend(axes: Axes, *, columns: int = 3, reverse: bool = False) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=columns, reverse=reverse, borderaxespad=0,
                handlelength=1.6, columnspacing=1.4, handletextpad=0.5)


def _svg(name: str, width: float, height: float, drawn: Callable[..., None], *data: Any) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    text, unwanted = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):  # the salt keeps the ids of two charts apart
        figure = Figure(figsize=(width, height), layout="constrained")
        drawn(figure.subplots(), *data)
        figure.savefig(text, format="svg", transparent=True, metadata=unwanted)
    return _inline(text.getvalue())


def _inline(document: str) -> str:
    """An SVG document as an HTML element, without prologue, namespaces, size, fonts and fixed colours."""
    svg = document[document.index("<svg"):].strip()
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", svg, count=5)
    svg = re.sub(r'\sid="[^"]*_\d+"', "", svg)  # the same numbers in every chart, and nothing refers to them
    svg = re.sub(r"font-family: [^;\"]*(?:; )?", "", svg).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
