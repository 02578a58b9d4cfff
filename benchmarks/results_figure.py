"""The picture of docs/results.md: quality against depth and against time, trained plainly and trained to skip."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from hsdlab.reporting.figures import settle_layout
from hsdlab.reporting.pareto import COLOURS, FAINT, INK, Labelled, frontier, label_points

NAMED = ("HSD(3, 0, 4)", "HSD(2, 0, 8)", "HSD(1, 0, 18)", "CALM(depth, 0.02)", "CALM(depth, 0.005)")
"""The strategies whose points have a number, which the legend explains."""
TICKS_MS = (10, 20, 30, 40, 50, 70, 100, 200, 300, 500)
SAME_LAYERS = "same layers in every step\n(not trained for)"


class Point(NamedTuple):
    """A strategy: what it costs, what it is worth in percent, its name."""

    cost: float
    percent: float
    name: str


def results_figure(
    title: str, by_layers: Mapping[str, Sequence[Point]], by_time: Mapping[str, Sequence[Point]]
) -> Figure:
    """Draw each model's strategies and the frontier that joins the best of them.

    Args:
        title: Of the data set.
        by_layers: Model to points, the cost in average layers.
        by_time: The same in milliseconds per decode step; a point that is not a number is left out.
    """
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    drawn = {left: _panel(left, by_layers), right: _panel(right, by_time)}
    left.set_xlabel("Average layers per decode step", color=INK)
    right.set_xlabel("Milliseconds per decode step, measured, logarithmic", color=INK)
    right.set_xscale("log")
    right.xaxis.set_major_locator(FixedLocator(TICKS_MS))
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_minor_locator(NullLocator())
    left.set_ylabel("ROUGE-L, % of the plain model at full depth", color=INK)
    left.set_title(title, loc="left", color=INK, fontweight="bold")
    shown = {point.label for points in drawn.values() for point in points}
    handles = [
        *left.get_legend_handles_labels()[0],
        Line2D(
            [], [], linestyle="none", marker="o", color="white", markeredgecolor=INK, markersize=8, label=SAME_LAYERS
        ),
        Line2D([], [], color=INK, linewidth=1.2, linestyle="--", alpha=0.6, label="best of one model"),
        *(
            Line2D([], [], linestyle="none", label=f"{number}  {name}")
            for number, name in enumerate(NAMED, start=1)
            if str(number) in shown
        ),
    ]
    figure.legend(handles=handles, frameon=False, labelcolor=INK, loc="outside right upper", fontsize=9)
    settle_layout(figure)  # in which the labels are measured
    for axes, points in drawn.items():
        label_points(axes, points)
    return figure


def has_same_layers(name: str) -> bool:
    """Tell a baseline that runs the same layers in every step, by its short name."""
    return name.startswith("StaticDepth") or name.endswith(", 0, 0)")


def _panel(axes: Axes, models: Mapping[str, Sequence[Point]]) -> list[Labelled]:
    """Draw the points of all models; return each with its number, or with no label."""
    axes.grid(color="#ececec", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.axhline(100, color=FAINT, linewidth=0.8, linestyle=":", label="100 %")
    axes.set_ylim(0, 112)
    numbers = {name: str(number) for number, name in enumerate(NAMED, start=1)}
    labelled = []
    for (model, points), colour, marker in zip(models.items(), COLOURS[2:0:-1], ("s", "o"), strict=False):
        drawn = [point for point in points if math.isfinite(point.cost) and math.isfinite(point.percent)]
        if not drawn:
            continue
        best = frontier([(point.cost, point.percent) for point in drawn if point.percent > 0])
        axes.plot(*zip(*best, strict=True), color=colour, linewidth=1.2, linestyle="--", alpha=0.6)
        fixed = [point for point in drawn if has_same_layers(point.name)]
        moving = [point for point in drawn if point not in fixed]
        for points_of, face, edge, label in ((moving, colour, "white", model), (fixed, "white", colour, None)):
            costs, percents = [point.cost for point in points_of], [point.percent for point in points_of]
            axes.plot(costs, percents, marker, color=face, markeredgecolor=edge, markersize=8, label=label)
        labelled += [
            Labelled(numbers.get(point.name, ""), point.cost, point.percent, math.nan, math.nan, colour)
            for point in drawn
        ]
    return labelled
