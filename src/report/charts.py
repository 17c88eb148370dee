"""Charts as SVG to put into a page: colours are the page's variables, so that they follow light and dark.

Equal data give equal bytes. matplotlib is imported only when a chart is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib wants colours; these stand for the variables of report.html.j2 and are replaced in its output.
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
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
NARROW, WIDE = 4.7, 12.0  # widths in inches of 72 CSS pixels, before the page scales them
_DOTS = 60  # more runs than this are a line alone
_LABELS = 12  # more promotions than this are not named one by one


@dataclass(frozen=True)
class Interval:
    """A score with its interval, and what the other model reached, None where there is none."""

    name: str
    value: float
    low: float
    high: float
    other: float | None


@dataclass(frozen=True)
class Point:
    """One evaluation in the history; promoted is the version it became, None where it never did."""

    score: float
    promoted: int | None
    is_challenger: bool


def scores(rows: Sequence[Interval]) -> str:
    """A dot and its interval for each score, the first on top."""
    def draw(axes: Axes) -> None:
        places = range(len(rows))
        values = [row.value for row in rows]
        reach = [[max(0.0, row.value - row.low) for row in rows], [max(0.0, row.high - row.value) for row in rows]]
        axes.errorbar(values, places, xerr=reach, fmt="o", color=_OURS, capsize=4, elinewidth=2, label="challenger")
        others = [(row.other, place + 0.27) for place, row in zip(places, rows, strict=True) if row.other is not None]
        if others:
            axes.plot(*zip(*others, strict=True), "D", color=_THEIRS, markersize=5.5, label="best promoted")
        axes.set_yticks(places, [row.name for row in rows])
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        _legend(axes, reverse=True)

    return _svg("scores", NARROW, 3.1, draw)


def gain(value: float, low: float, high: float, threshold: float) -> str:
    """The gain with its interval, beside no gain at all and the threshold."""
    def draw(axes: Axes) -> None:
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

    return _svg("gain", NARROW, 1.8, draw)


def contributions(sides: Mapping[str, Mapping[str, float]], *, width: float) -> str:
    """A bar for each model, of weight x metric, the first on top; width is NARROW or WIDE."""
    def draw(axes: Axes) -> None:
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
        _legend(axes, columns=3 if width == NARROW else len(_SHADES))

    return _svg(f"contributions-{width}", width, 1.2 + 0.62 * len(sides), draw)


def history(points: Sequence[Point], *, width: float) -> str:
    """The scores in the order of their evaluation, the promoted ones marked; width is NARROW or WIDE."""
    def draw(axes: Axes) -> None:
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

    return _svg(f"history-{width}", width, 2.8 if width == NARROW else 3.4, draw)


def losses(train: Sequence[float], validation: Sequence[float]) -> str:
    """Training and validation loss of each epoch, from 1; the epoch that was kept is marked."""
    def draw(axes: Axes) -> None:
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

    return _svg("losses", NARROW, 2.8, draw)


def _legend(axes: Axes, *, columns: int = 3, reverse: bool = False) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=columns, reverse=reverse, borderaxespad=0,
                handlelength=1.6, columnspacing=1.4, handletextpad=0.5)


def _svg(name: str, width: float, height: float, draw: Callable[[Axes], None]) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    text = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):  # the salt keeps the ids of two charts apart
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        figure.savefig(text, format="svg", transparent=True, metadata=_NO_METADATA)
    return _inline(text.getvalue())


def _inline(document: str) -> str:
    """An SVG document as an element of an HTML page: no prologue, namespaces, size, font or colour of its own."""
    svg = document[document.index("<svg"):].strip()
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", svg, count=5)
    svg = re.sub(r'\sid="[^"]*_\d+"', "", svg)  # numbered alike in each chart, and never referred to
    svg = re.sub(r"font-family: [^;\"]*(?:; )?", "", svg).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
