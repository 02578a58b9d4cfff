"""The picture of a calibration: for each tolerance, the risk of the setting that it would choose."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from hsdlab.records.calibration import CalibrationResult
from hsdlab.records.labels import metric_label
from hsdlab.reporting.pareto import COLOURS, FAINT, INK

BLACK, BLUE, ORANGE = COLOURS[:3]


@dataclass(frozen=True)
class Step:
    """What the tolerances from `start` up to the next step's would choose.

    Attributes:
        start: The least of these tolerances, 0 to 1.
        number: Number of the chosen setting's row in the tables.
        mean_loss: The chosen setting's mean loss, 0 for full depth.
        upper_bound: Bound of its risk at level 1 − ε, 0 for full depth.
    """

    start: float
    number: int
    mean_loss: float
    upper_bound: float


def choices(result: CalibrationResult) -> list[Step]:
    """Find what each tolerance would choose.

    A setting is reached where it and all before it pass: at the largest of their upper bounds. One that passes
    together with the next is never chosen.

    Args:
        result: The calibration. Where settings were not tested, nothing is known beyond the last step.

    Returns:
        Steps by growing tolerance. The first is full depth's, from 0 on.
    """
    steps, start = [Step(0.0, result.comparison.rows[0].number, 0.0, 0.0)], 0.0
    for row, test in result.tested:
        upper = test.risk_upper_bound
        if upper > start:
            start = upper
        else:
            steps.pop()
        steps.append(Step(start, row.number, test.mean_loss, upper))
    return steps


def level(result: CalibrationResult) -> str:
    """Format the level of the guarantee.

    Args:
        result: Its `error` is ε.

    Returns:
        1 − ε in percent, such as "95 %".
    """
    return f"{100 * (1 - result.error):.10g} %"


def calibration_figure(result: CalibrationResult) -> Figure:
    """Draw tolerance against the mean loss of the setting that it would choose, with the bound of its risk.

    Args:
        result: The calibration.

    Returns:
        A figure of 9 by 4.8 inches on the Agg canvas, apart from pyplot's global state.
    """
    steps = choices(result)
    tolerance = result.tolerance
    known = steps[-1].start if len(result.tests) < len(result.settings) else 1.0
    end = min(1.0, 1.12 * max(tolerance, steps[-1].start))
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.set_xlim(0, end)
    axes.set_ylim(-0.02 * end, end)
    axes.set_xlabel("Tolerance", color=INK)
    axes.set_ylabel(f"Loss ({metric_label(result.metric)}, {result.loss})", color=INK)
    axes.plot([0, end], [0, end], color=FAINT, linestyle="--", linewidth=1.2)
    _draw_steps(axes, steps, min(end, known))
    if known < end:
        axes.axvspan(known, end, color="#f3f3f3", zorder=0)
    _draw_choice(axes, result)
    handles = [
        Line2D([], [], color=BLUE, linewidth=2, label="mean loss of what is chosen"),
        Patch(color=BLUE, alpha=0.15, linewidth=0, label=f"bound of its risk, {level(result)}"),
        Line2D([], [], color=FAINT, linestyle="--", label="the tolerance itself"),
        Line2D([], [], color=BLACK, marker="o", linestyle="none", label=f"chosen at {tolerance:g}"),
        *([Patch(color="#f3f3f3", label="later settings not decoded")] if known < end else []),
        *(Line2D([], [], linestyle="none", label=f"{row.number}  {row.label}") for row in result.comparison.rows),
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=INK)
    return figure


def _draw_steps(axes: Axes, steps: list[Step], end: float) -> None:
    """Draw mean losses and bounds as staircases, with the settings' numbers on them."""
    ends = [*(step.start for step in steps[1:]), end]
    xs = [x for step, stop in zip(steps, ends, strict=True) for x in (step.start, stop)]
    means = [step.mean_loss for step in steps for _ in range(2)]
    axes.plot(xs, means, color=BLUE, linewidth=2, zorder=3)
    axes.fill_between(
        xs, means, [step.upper_bound for step in steps for _ in range(2)], color=BLUE, alpha=0.15, linewidth=0
    )
    if steps[-1].start == end:  # the setting that ended the test would pass from here on, and perhaps a later one too
        axes.plot(end, steps[-1].mean_loss, color=BLUE, marker="o", markerfacecolor="white", zorder=4)
    for step, stop in zip(steps, ends, strict=True):
        axes.annotate(
            str(step.number),
            ((step.start + stop) / 2, step.mean_loss),
            xytext=(0, 7) if step.start < stop else (9, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9.5,
            fontweight="bold",
            color=BLUE,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=4,
        )


def _draw_choice(axes: Axes, result: CalibrationResult) -> None:
    """Mark the tolerance, and the chosen setting's mean loss and bound at it."""
    tolerance, test = result.tolerance, result.chosen_test
    mean, upper = (0.0, math.nan) if test is None else (test.mean_loss, test.risk_upper_bound)
    axes.axvline(tolerance, color=FAINT, linewidth=1)
    axes.plot([tolerance, tolerance], [mean, upper], color=BLACK, marker="_", linewidth=1.4, zorder=4)
    axes.plot(tolerance, mean, color=BLACK, marker="o", markersize=8, markeredgecolor="white", zorder=5)
