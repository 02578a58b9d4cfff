"""The picture of a tuning of drafts: predicted speed-ups of all drafts, and those of the measured ones beside them."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hsdlab.records.draft_tuning import DraftTuningResult
from hsdlab.reporting.figures import settle_layout
from hsdlab.reporting.pareto import FAINT, INK, Labelled, Style, class_styles, label_points, prepare

SMALL: Style = {"markersize": 4, "alpha": 0.35, "markeredgewidth": 0}
CHOSEN: Style = {"markersize": 13}


def draft_tuning_figure(result: DraftTuningResult) -> Figure:
    """Draw the predicted speed-up of all drafts (left), and the measured against the predicted one (right).

    On the left, each draft is a faint dot at its best length and vocabulary, against its layers; the measured ones are
    filled. On the right, the error bars are bootstrap intervals, and the dashed line is a prediction that holds. The
    numbers are those of the legend; the chosen one is larger.

    Args:
        result: The tuning.

    Returns:
        A figure of 12 by 4.8 inches on the Agg canvas, apart from pyplot's global state.
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    full = result.comparison.rows[0]
    styles = class_styles([full.class_name, *(draft.strategy.class_name for draft in result.drafts)])
    for axes in (left, right):
        prepare(axes)
        axes.axhline(1, color=FAINT, linestyle=":", linewidth=1.4, zorder=1)
    left.set_xlabel(f"Layers per draft (of {full.num_layers})", color=INK)
    left.set_ylabel("Predicted speed-up over full depth (×)", color=INK)
    right.set_xlabel("Predicted speed-up (×)", color=INK)
    right.xaxis.set_major_locator(MaxNLocator(nbins=8))
    level = f"{result.comparison.bootstrap.level:.0%}"
    right.set_ylabel(f"Measured speed-up (×), with {level} interval", color=INK)
    for draft in result.drafts:
        left.plot(draft.average_layers, draft.best.speed_up, **styles[draft.strategy.class_name] | SMALL, zorder=2)
    points = _draw_measured(left, right, result, styles)
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items() if name != full.class_name]
    handles += [
        Line2D([], [], linestyle="none", label=f"{number}  {row.label}")
        for number, row in enumerate(result.rows, start=1)
    ]
    handles.append(Line2D([], [], color=FAINT, linestyle=":", label="speed of full depth"))
    handles.append(Line2D([], [], color=FAINT, linestyle="--", label="measured as predicted"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=INK)
    settle_layout(figure)  # in which the numbers are measured
    label_points(right, points)
    return figure


def _draw_measured(left: Axes, right: Axes, result: DraftTuningResult, styles: dict[str, Style]) -> list[Labelled]:
    """Draw the measured drafts; return the points of the right panel."""
    points = []
    for place, (measured, prediction, row) in enumerate(
        zip(result.measured, result.predictions, result.rows, strict=True)
    ):
        draft = result.drafts[measured.draft]
        style = styles[draft.strategy.class_name] | (CHOSEN if place == result.chosen else {})
        left.plot(draft.average_layers, prediction.speed_up, **style, zorder=3)
        if not math.isfinite(row.speed_up):
            continue
        low, high = row.speed_up_interval or (row.speed_up, row.speed_up)
        x, colour = prediction.speed_up, style["color"]
        right.plot([x, x], [low, high], color=colour, marker="_", alpha=0.4, linewidth=1.4, zorder=2)
        right.plot(x, row.speed_up, **style, zorder=3)
        points.append(Labelled(str(place + 1), x, row.speed_up, low, high, colour))
    if points:
        ends = [min(point.x for point in points), max(point.x for point in points)]
        right.plot(ends, ends, color=FAINT, linestyle="--", linewidth=1.2, zorder=1)
    return points
