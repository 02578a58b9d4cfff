"""The picture of docs/early_exit.md: quality against layers and against time, all families of methods."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.results_figure import Point
from hsdlab.reporting.figures import settle_layout
from hsdlab.reporting.pareto import COLOURS, FAINT, INK, MARKERS, Labelled, label_points

FAMILIES = {
    "Full depth, also verified": ("FullDepth", "Verified"),
    "Schedules": ("HSD", "SkipDecode"),
    "CALM": ("CALM",),
    "DeeBERT, PABEE": ("DeeBERT", "PABEE"),
    "LearnedExit": ("LearnedExit",),
    "Compose(HSD, CALM)": ("Compose",),
    "OracleExit (bound)": ("OracleExit",),
}
"""The families of methods in the legend, and the classes of each."""


def early_exit_figure(title: str, panels: Mapping[str, Sequence[Point]]) -> Figure:
    """Draw each strategy's quality against its cost, a panel for each cost.

    Args:
        title: Of the data set.
        panels: Label of the horizontal axis to points; a point that is not a number is left out.
    """
    figure = Figure(figsize=(4.6 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(point.name for points in panels.values() for point in points))
    numbers = {name: number for number, name in enumerate(names, start=1)}
    drawn = {}
    for axes, (label, points) in zip(columns, panels.items(), strict=True):
        drawn[axes] = _panel(axes, points, numbers)
        axes.set_xlabel(label, color=INK)
    columns[0].set_ylabel("ROUGE-L, % of the plain model at full depth", color=INK)
    columns[0].set_title(title, loc="left", color=INK, fontweight="bold")
    handles, labels = columns[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        frameon=False,
        labelcolor=INK,
        loc="outside lower center",
        ncols=len(FAMILIES),
        fontsize=10,
        columnspacing=1.2,
        handletextpad=0.2,
    )
    listed = "\n".join(f"{number}  {name}" for name, number in numbers.items())
    columns[-1].text(1.03, 1.0, listed, transform=columns[-1].transAxes, va="top", fontsize=8.5, color=INK)
    settle_layout(figure)  # in which the labels are measured
    for axes, points in drawn.items():
        label_points(axes, points)
    return figure


def family(name: str) -> str:
    """Return the family of a strategy by its name on the page."""
    class_name = name.partition("(")[0]
    return next(family for family, classes in FAMILIES.items() if class_name in classes)


def _panel(axes: Axes, points: Sequence[Point], numbers: Mapping[str, int]) -> list[Labelled]:
    """Draw the points of all families; return each with its number."""
    axes.grid(color="#ececec", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.axhline(100, color=FAINT, linewidth=0.8, linestyle=":")
    axes.margins(x=0.12, y=0.12)
    labelled = []
    for each, colour, marker in zip(FAMILIES, COLOURS, MARKERS, strict=True):
        shown = [point for point in points if family(point.name) == each and math.isfinite(point.cost + point.percent)]
        costs, percents = [point.cost for point in shown], [point.percent for point in shown]
        axes.plot(costs, percents, marker, color=colour, markeredgecolor="white", markersize=9, label=each)
        labelled += [
            Labelled(str(numbers[point.name]), point.cost, point.percent, math.nan, math.nan, colour) for point in shown
        ]
    return labelled
