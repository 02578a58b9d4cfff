"""The picture of a tuning: quality of what was decoded, and score of what was searched, against depth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hsdlab.records import bootstrap
from hsdlab.reporting.pareto import FAINT, INK, Style, class_styles, prepare

if TYPE_CHECKING:
    from hsdlab.reporting.tuning import TuningReport
    from hsdlab.tuning import Setting

SMALL: Style = {"markersize": 4, "alpha": 0.35, "markeredgewidth": 0}
OPEN: Style = {"markerfacecolor": "white", "markersize": 6}
CHOSEN: Style = {"markersize": 13}


def tuning_figure(report: TuningReport) -> Figure:
    """Draw the quality of full depth and of the decoded settings (left), and the scores of all settings (right).

    Both are against average layers: measured on the left, planned from the schedules on the right. Right, settings
    that were only scored are faint dots; those of the frontier are joined, the decoded ones filled. The chosen one is
    named and larger.

    Args:
        report: The tuning.

    Returns:
        A figure of 12 by 4.8 inches on the Agg canvas, apart from pyplot's global state.
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True)
    classes = [type(setting.strategy).__name__ for setting in report.settings]
    styles = class_styles([report.reference.class_name, *classes])
    for axes in (left, right):
        prepare(axes)
    left.set_xlabel(f"Average layers per decode step (of {report.reference.num_layers})", color=INK)
    right.set_xlabel("Average layers, from the schedule", color=INK)
    left.set_ylabel(f"% of full depth's {report.metric_label}, with {bootstrap.LEVEL:.0%} interval", color=INK)
    right.set_ylabel("Nats per token of full depth's own texts", color=INK)
    _draw_quality(left, report, styles)
    _draw_scores(right, report, styles)
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    open_point = Line2D([], [], linestyle="none", marker="o", color=FAINT, label="not decoded", **OPEN)
    handles += [open_point, Line2D([], [], color=FAINT, linestyle="--", label="frontier of the scores")]
    if report.goal.max_loss is not None:
        handles.append(Line2D([], [], color=FAINT, linestyle=":", label="what has to be kept"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=INK)
    return figure


def _draw_quality(axes: Axes, report: TuningReport, styles: dict[str, Style]) -> None:
    for row in report.comparison.rows:
        x, (y, low, high) = row.average_layers, row.percent_of_baseline[report.metric]
        style = styles[row.result.class_name]
        if math.isfinite(low) and not row.is_baseline:
            axes.plot([x, x], [low, high], color=style["color"], marker="_", alpha=0.4, linewidth=1.4, zorder=2)
        is_chosen = row is report.chosen_row
        axes.plot(x, y, **style | (CHOSEN if is_chosen else {}), zorder=3)
        if is_chosen:
            axes.annotate(
                row.label,
                (x, y),
                xytext=(0, -18),
                textcoords="offset points",
                ha="right" if 2 * x > row.result.num_layers else "left",
                color=style["color"],
                fontweight="bold",
            )
    if report.goal.max_loss is not None:
        axes.axhline(100 * (1 - report.goal.max_loss), color=FAINT, linestyle=":", linewidth=1.4)


def _draw_scores(axes: Axes, report: TuningReport, styles: dict[str, Style]) -> None:
    def draw(setting: Setting, look: Style) -> None:
        if setting.score is not None and math.isfinite(setting.score):
            style = styles[type(setting.strategy).__name__]
            axes.plot(setting.average_layers, setting.score, **style | look, zorder=3)

    for setting in report.settings:
        draw(setting, SMALL)
    axes.plot(report.reference.num_layers, report.reference_score, **styles[report.reference.class_name], zorder=3)
    best = [(setting.average_layers, setting.score) for setting in report.frontier]
    if best:
        axes.plot(*zip(*best, strict=True), color=FAINT, linewidth=1.2, linestyle="--", drawstyle="steps-pre", zorder=1)
    for place, setting in enumerate(report.frontier):
        if place not in report.decoded:
            draw(setting, OPEN | {"markeredgecolor": styles[type(setting.strategy).__name__]["color"]})
        else:
            draw(setting, CHOSEN if place == report.chosen_place else {})
