"""The picture of a comparison: quality against average layers, and against measured time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from hsdlab.errors import UserError
from hsdlab.records.comparison import Comparison, ComparisonRow
from hsdlab.records.labels import METRIC_LABELS
from hsdlab.reporting.figures import settle_layout
from hsdlab.reporting.tables import MARKS_IN_WORDS, time_mark

Style = dict[str, Any]
"""Keywords of a line without a line: colour and marker."""
Cost = Callable[[ComparisonRow], float]
"""What the x-axis of a panel shows of a strategy."""

# Okabe and Ito's colour-blind-safe palette (jfly.uni-koeln.de/color) without yellow, which is faint on white.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("X", "o", "s", "^", "D", "v", "P")
INK, FAINT = "#333333", "#9a9a9a"
LABEL_OFFSETS = [  # where a label may stand around its point, in points, nearest first
    (distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle)))
    for distance in (11, 15, 20, 26)
    for angle in (40, 140, 320, 220, 0, 180, 20, 160, 340, 200)
]


class Labelled(NamedTuple):
    """A point of a panel, the ends of its error bar, and what is written beside it.

    Attributes:
        label: The strategy's number in the table, with the mark of its time where it has one.
        x: In the unit of the panel's horizontal axis.
        y: The score.
        low: Lower end of the score's interval.
        high: Upper end of it.
        colour: As matplotlib takes it.
    """

    label: str
    x: float
    y: float
    low: float
    high: float
    colour: str


def pareto_figure(comparison: Comparison, metric: str = "rougeL") -> Figure:
    """Draw quality against average layers (left) and against milliseconds per decode step (right).

    Error bars are bootstrap intervals, of the quality and, on the right, of the speed-up. The dashed staircase joins
    the strategies that no other one beats in both directions, without those of quality 0. Strategies of one class share
    colour and marker.
    The numbers are those of the legend and of the tables' order. Times have the marks of the tables. A strategy
    without a figure on an axis is left out of that panel.

    Args:
        comparison: Of one strategy or more.
        metric: A key of their scores, such as "rougeL".

    Returns:
        A figure of 12 by 4.8 inches on the Agg canvas, apart from pyplot's global state.

    Raises:
        UserError: hsdlab has no such metric.
    """
    if metric not in METRIC_LABELS:
        raise UserError(f"Got metric {metric!r}. Expected one of {', '.join(METRIC_LABELS)}.")
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    panels: list[tuple[Axes, Cost]] = [
        (left, lambda row: row.average_layers),
        (right, lambda row: row.figure("decode_step_ms")),
    ]
    styles = class_styles([comparison.baseline.class_name, *(row.class_name for row in comparison.rows)])
    for axes, cost in panels:
        _draw_panel(axes, comparison.rows, styles, metric, cost)
    _draw_times(right, _drawn(comparison.rows, metric, panels[1][1]), styles)
    left.set_xlabel(f"Average layers per decode step (of {comparison.baseline.num_layers})", color=INK)
    right.set_xlabel("Milliseconds per decode step, measured", color=INK)
    left.set_ylabel(f"{METRIC_LABELS[metric]}, with {comparison.bootstrap.level:.0%} interval", color=INK)
    handles = [Line2D([], [], label=f"{row.number}  {row.label}", **styles[row.class_name]) for row in comparison.rows]
    handles.append(Line2D([], [], color=FAINT, linestyle="--", label="Pareto frontier"))
    handles += mark_handles(comparison.rows)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=INK)
    settle_layout(figure)  # in which the numbers are measured
    for axes, cost in panels:
        points = [
            Labelled(
                f"{row.number}{time_mark(row) if axes is right else ''}",
                x,
                y,
                row.quality[metric].low,
                row.quality[metric].high,
                styles[row.class_name]["color"],
            )
            for row, x, y in _drawn(comparison.rows, metric, cost)
        ]
        label_points(axes, points)
    return figure


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other point beats, cheapest first.

    Args:
        points: (cost, quality); less cost and more quality are better.

    Returns:
        Those with a higher quality than every cheaper or equally cheap point.
    """
    best: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or quality > best[-1][1]:
            best.append((cost, quality))
    return best


def mark_handles(rows: Sequence[ComparisonRow]) -> list[Line2D]:
    """Make the legend's entries for the marks beside points of the time panel.

    Args:
        rows: The rows of the picture. A mark that none of them has gets no entry.

    Returns:
        Entries of text alone.
    """
    found = {time_mark(row) for row in rows}
    return [
        Line2D([], [], linestyle="none", marker=f"${mark}$", color=INK, label=text)
        for mark, text in MARKS_IN_WORDS.items()
        if mark in found
    ]


def class_styles(class_names: Sequence[str]) -> dict[str, Style]:
    """Give each class a colour and a marker.

    Args:
        class_names: In the order in which colours are given. A repeated name keeps its first colour.

    Returns:
        Keywords of matplotlib's `plot` for each class. They repeat after the seventh.
    """
    return {
        name: {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 8,
            "markeredgecolor": "white",
            "linestyle": "none",
        }
        for index, name in enumerate(dict.fromkeys(class_names))
    }


def prepare(axes: Axes) -> None:
    """Give a panel its grid and margins, and whole numbers to its x-axis.

    Args:
        axes: The panel, changed in place.
    """
    axes.grid(color="#ececec", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.margins(x=0.08, y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _drawn(rows: Sequence[ComparisonRow], metric: str, cost: Cost) -> list[tuple[ComparisonRow, float, float]]:
    """Return (row, x, y) of the rows that have both."""
    points = [(row, cost(row), row.quality[metric].value) for row in rows if metric in row.quality]
    return [(row, x, y) for row, x, y in points if math.isfinite(x) and math.isfinite(y)]


def _draw_panel(
    axes: Axes,
    rows: Sequence[ComparisonRow],
    styles: Mapping[str, Style],
    metric: str,
    cost: Cost,
) -> None:
    prepare(axes)
    points = _drawn(rows, metric, cost)
    if not points:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=FAINT)
        axes.set_xticks([])
        return
    best = frontier([(x, y) for _, x, y in points if y > 0])
    axes.plot(
        [x for x, _ in best],
        [y for _, y in best],
        color=FAINT,
        linewidth=1.2,
        linestyle="--",
        drawstyle="steps-post",
        zorder=1,
    )
    for row, x, y in points:
        style, interval = styles[row.class_name], row.quality[metric]
        if math.isfinite(interval.low):
            axes.plot(
                [x, x],
                [interval.low, interval.high],
                color=style["color"],
                marker="_",
                alpha=0.4,
                linewidth=1.4,
                zorder=2,
            )
        axes.plot(x, y, **style, zorder=3)


def _draw_times(axes: Axes, points: Sequence[tuple[ComparisonRow, float, float]], styles: Mapping[str, Style]) -> None:
    """Draw the interval of the speed-up as an error bar of the time, the baseline's time being taken as it is."""
    for row, step_ms, y in points:
        if row.speed_up_interval is not None:
            ends = [step_ms * row.speed_up / end for end in row.speed_up_interval]
            axes.plot(
                ends, [y, y], color=styles[row.class_name]["color"], marker="|", alpha=0.4, linewidth=1.4, zorder=2
            )


def label_points(axes: Axes, points: Sequence[Labelled]) -> None:
    """Write each point's label at the first free place around it, else where it covers least.

    Args:
        axes: The panel, changed in place. The layout of its figure is settled: later changes would move the labels.
        points: The points and their labels.
    """
    point = axes.figure.dpi / 72  # pixels
    pixels = axes.transData.transform
    markers = [Bbox([pixels((p.x, p.y)) - 5 * point, pixels((p.x, p.y)) + 5 * point]) for p in points]
    bars = [Bbox([pixels((p.x, p.low)) - point, pixels((p.x, p.high)) + point]) for p in points if math.isfinite(p.low)]
    written: list[Bbox] = []
    for p in points:
        label = axes.annotate(
            p.label,
            (p.x, p.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=9.5,
            fontweight="bold",
            ha="center",
            va="center",
            color=p.colour,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],  # legible across a line
            zorder=4,
        )
        tried, centred = [], label.get_window_extent()
        for offset in LABEL_OFFSETS:
            box = centred.translated(offset[0] * point, offset[1] * point)
            tried.append((_covered(box, markers + written) + 0.5 * _covered(box, bars), offset, box))
        _, offset, box = min(tried, key=lambda place: place[0])
        label.set_position(offset)
        written.append(box)


def _covered(box: Bbox, taken: Sequence[Bbox]) -> float:
    """Return the area that the box shares with others, in square pixels."""
    shared = [Bbox.intersection(box, other) for other in taken]
    return sum(overlap.width * overlap.height for overlap in shared if overlap is not None)
