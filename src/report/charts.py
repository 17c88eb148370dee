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
from src.report.history import Entry

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
    """A model in the comparison table; delta is this model's score minus its own, None for this model itself."""

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
         models: Sequence[Entry], losses: Losses | None) -> dict[str, Chart]:
    """The charts by name; gain, history and losses are left out if they have no data."""
    made = {"scores": _score_chart(scores, sides), "contributions": _contribution_chart(sides)}
    if gain:
        drawing = _svg("gain", NARROW, 1.8, _draw_gain, gain["gain"], gain["low"], gain["high"], gain["threshold"])
        made["gain"] = Chart((drawing,), f"Gain {gain['gain']:+.4f}, interval {gain['low']:+.4f} to "
                                         f"{gain['high']:+.4f}, threshold {gain['threshold']:g}.")
    if models:
        made["history"] = Chart((_svg(f"history-{WIDE}", WIDE, 3.4, _draw_history, models, 4),
                                 _svg(f"history-{NARROW}", NARROW, 2.8, _draw_history, models, 2)),
                                _history_words(models))
    if losses:
        train, validation = losses.train, losses.validation
        drawing = _svg("losses", NARROW, 2.8, _draw_losses, train, validation)
        made["losses"] = Chart((drawing,), f"Over {len(train)} epochs the training loss went from {train[0]:.3f} to "
                               f"{train[-1]:.3f}, the validation loss from {validation[0]:.3f} to "
                               f"{validation[-1]:.3f}; its lowest was {min(validation):.3f}.")
    return made


def _score_chart(scores: Sequence[Score], sides: Sequence[ComparedModel]) -> Chart:
    promoted = next((side for side in sides[1:] if SIDES["best_promoted"] in side.name), None)
    others = {WEIGHTED: promoted.score, **promoted.metrics} if promoted else {}
    words = (f"{NAMES[row.name]} {row.value:.4f}, interval {row.low:.4f} to {row.high:.4f}" for row in scores)
    return Chart((_svg("scores", NARROW, 3.1, _draw_scores, scores, others),), "; ".join(words) + ".")


def _contribution_chart(sides: Sequence[ComparedModel]) -> Chart:
    stacks = {side.name: {NAMES[metric]: side.contributions[metric] for metric in METRICS} for side in sides}
    words = (f"{name}: " + ", ".join(f"{m} {part:.4f}" for m, part in parts.items()) for name, parts in stacks.items())
    drawings = (_svg(f"contributions-{width}", width, 1.2 + 0.62 * len(stacks), _draw_contributions, stacks, columns)
                for width, columns in ((WIDE, len(_SHADES)), (NARROW, 3)))
    return Chart(tuple(drawings), "; ".join(words) + ".")


def _history_words(models: Sequence[Entry]) -> str:
    promoted = [f"version {entry.version} at {entry.score:.4f}{' (scored again)' if entry.is_rescored else ''}"
                for entry in models if entry.version is not None]
    lowest, highest = min(entry.score for entry in models), max(entry.score for entry in models)
    return (f"{len(models)} models with weighted scores from {lowest:.4f} to {highest:.4f}; promoted, in this order: "
            f"{', '.join(promoted) or 'none'}.")


def _draw_scores(axes: Axes, rows: Sequence[Score], others: Mapping[str, float]) -> None:
    """A dot and its interval for each score, the first on top; others: the best promoted model's, by name."""
    places = range(len(rows))
    values = [row.value for row in rows]
    reach = [[max(0.0, row.value - row.low) for row in rows], [max(0.0, row.high - row.value) for row in rows]]
    axes.errorbar(values, places, xerr=reach, fmt="o", color=_OURS, capsize=4, elinewidth=2, label="this model")
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
    axes.set_xlabel("weighted score of this model minus the best promoted")
    _legend(axes, reverse=True)


def _draw_contributions(axes: Axes, sides: Mapping[str, Mapping[str, float]], columns: int) -> None:
    """One stacked bar for each model, made of weight x metric, the first on top."""
    starts = [0.0] * len(sides)
    for metric, shade in zip(next(iter(sides.values())), _SHADES, strict=True):
        parts = [side[metric] for side in sides.values()]
        axes.barh(range(len(sides)), parts, left=starts, height=0.45, color=shade, edgecolor=_CARD, label=metric)
        starts = [start + part for start, part in zip(starts, parts, strict=True)]
    for place, (name, total) in enumerate(zip(sides, starts, strict=True)):
        axes.annotate(f"{name[:1].upper()}{name[1:]}", (0, place - 0.24), (0, 3), textcoords="offset points")
        axes.annotate(f"{total:.4f}", (total, place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks([])
    axes.set_ylim(len(sides) - 0.5, -0.65)
    axes.set_xlim(0, 1.14 * max(starts) or 1)
    axes.grid(visible=False, axis="y")
    _legend(axes, columns=columns)


def _draw_history(axes: Axes, models: Sequence[Entry], columns: int) -> None:
    """The models in the order of their promotions, with a line through those that were promoted."""
    places = list(enumerate(models, start=1))
    promoted = [(place, entry) for place, entry in places if entry.version is not None]
    others = [(place, entry) for place, entry in places if entry.version is None]
    few = len(promoted) <= _LABELS
    size = 7.5 if few else 5
    _marks(axes, others, "o", color=_MUTED, markersize=4.5 if len(models) <= _DOTS else 2.5, label="not promoted")
    axes.plot([place for place, _ in promoted], [entry.score for _, entry in promoted], color=_THEIRS, linewidth=1.4)
    _marks(axes, [each for each in promoted if not each[1].is_rescored], "D", color=_THEIRS, markersize=size,
           label="promoted")
    _marks(axes, [each for each in promoted if each[1].is_rescored], "D", markerfacecolor=_CARD, markersize=size,
           markeredgecolor=_THEIRS, markeredgewidth=1.8, label="promoted, scored again later")
    for place, entry in promoted if few else promoted[-1:]:
        axes.annotate(f"v{entry.version}", (place, entry.score), (0, 12), textcoords="offset points", ha="center")
    _marks(axes, [each for each in places if each[1].is_challenger], "o", markerfacecolor="none",
           markeredgecolor=_OURS, markeredgewidth=2, markersize=15, label="this model")
    axes.margins(y=0.25)
    room = max(0.5, 0.04 * len(models))
    axes.set_xlim(1 - room, len(models) + room)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.set_xlabel("model, in the order of promotion or evaluation")
    axes.set_ylabel("weighted score")
    _legend(axes, columns=columns)


def _marks(axes: Axes, entries: Sequence[tuple[int, Entry]], marker: str, **style: Any) -> None:
    if entries:
        axes.plot([place for place, _ in entries], [entry.score for _, entry in entries], marker, **style)


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
