"""The picture of a tuning: quality of what was decoded, and score of what was searched, against depth."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hsdlab.records.labels import metric_label
from hsdlab.records.tuning import TunedSetting, TuningResult
from hsdlab.reporting.pareto import FAINT, INK, Style, class_styles, prepare

SMALL: Style = {"markersize": 4, "alpha": 0.35, "markeredgewidth": 0}
OPEN: Style = {"markerfacecolor": "white", "markersize": 6}
CHOSEN: Style = {"markersize": 13}


def tuning_figure(result: TuningResult) -> Figure:
    """Draw the quality of full depth and of the decoded settings (left), and the scores of all settings (right).

    Both are against average layers: measured on the left, planned from the schedules on the right. Right, settings
    that were only scored are faint dots; those of the frontier are joined, the decoded ones filled. The chosen one is
    named and larger.

    Args:
        result: The tuning.

    Returns:
        A figure of 12 by 4.8 inches on the Agg canvas, apart from pyplot's global state.
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True)
    full = result.comparison.rows[0]
    styles = class_styles([full.class_name, *(setting.strategy.class_name for setting in result.settings)])
    for axes in (left, right):
        prepare(axes)
    left.set_xlabel(f"Average layers per decode step (of {full.num_layers})", color=INK)
    right.set_xlabel("Average layers, from the schedule", color=INK)
    left.set_ylabel(
        f"% of full depth's {metric_label(result.metric)}, with {result.comparison.bootstrap.level:.0%} interval",
        color=INK,
    )
    right.set_ylabel("Nats per token of full depth's own texts", color=INK)
    _draw_quality(left, result, styles)
    _draw_scores(right, result, styles)
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    open_point = Line2D([], [], linestyle="none", marker="o", color=FAINT, label="not decoded", **OPEN)
    handles += [open_point, Line2D([], [], color=FAINT, linestyle="--", label="frontier of the scores")]
    if result.goal.max_loss is not None:
        handles.append(Line2D([], [], color=FAINT, linestyle=":", label="what has to be kept"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=INK)
    return figure


def _draw_quality(axes: Axes, result: TuningResult, styles: dict[str, Style]) -> None:
    for row in result.comparison.rows:
        x, kept, style = row.average_layers, row.percent_of_baseline[result.metric], styles[row.class_name]
        if math.isfinite(kept.low) and not row.is_baseline:
            axes.plot(
                [x, x], [kept.low, kept.high], color=style["color"], marker="_", alpha=0.4, linewidth=1.4, zorder=2
            )
        is_chosen = row is result.chosen_row
        axes.plot(x, kept.value, **style | (CHOSEN if is_chosen else {}), zorder=3)
        if is_chosen:
            axes.annotate(
                row.label,
                (x, kept.value),
                xytext=(0, -18),
                textcoords="offset points",
                ha="right" if 2 * x > row.num_layers else "left",
                color=style["color"],
                fontweight="bold",
            )
    if result.goal.max_loss is not None:
        axes.axhline(100 * (1 - result.goal.max_loss), color=FAINT, linestyle=":", linewidth=1.4)


def _draw_scores(axes: Axes, result: TuningResult, styles: dict[str, Style]) -> None:
    def draw(setting: TunedSetting, look: Style) -> None:
        score = setting.nats_per_token
        if score is not None and math.isfinite(score):
            style = styles[setting.strategy.class_name]
            axes.plot(setting.average_layers, score, **style | look, zorder=3)

    for setting in result.settings:
        draw(setting, SMALL)
    full = result.comparison.rows[0]
    axes.plot(full.num_layers, result.reference_nats_per_token, **styles[full.class_name], zorder=3)
    best = [(setting.average_layers, setting.nats_per_token) for setting in result.frontier_settings]
    if best:
        axes.plot(*zip(*best, strict=True), color=FAINT, linewidth=1.2, linestyle="--", drawstyle="steps-pre", zorder=1)
    for place, (setting, verdict) in enumerate(zip(result.frontier_settings, result.verdicts, strict=True)):
        if verdict is None:
            draw(setting, OPEN | {"markeredgecolor": styles[setting.strategy.class_name]["color"]})
        else:
            draw(setting, CHOSEN if place == result.chosen else {})
