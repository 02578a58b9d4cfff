"""The picture of an inspection: predictions, states and losses, layer by layer."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hsdlab.records.bootstrap import Estimate
from hsdlab.records.inspection import InspectionResult
from hsdlab.reporting.calibration_curve import plain_axes
from hsdlab.reporting.pareto import COLOURS, FAINT, INK

BLACK, BLUE, ORANGE, GREEN = COLOURS[:4]
LINEAR_BELOW = 0.1  # nats; above, losses are drawn on a logarithmic axis
CHEAPEST = 5  # layers that are marked as cheapest to drop


def inspection_figure(result: InspectionResult) -> Figure:
    """Draw three panels over the layers: whose prediction is the last one's, what changes the state, what is missed.

    Args:
        result: The inspection.

    Returns:
        A figure of 10 by 9 inches on the Agg canvas, apart from pyplot's global state.
    """
    figure = Figure(figsize=(10, 9), layout="constrained")
    FigureCanvasAgg(figure)
    predictions, states, losses = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 3))
    for axes in (predictions, states, losses):
        plain_axes(axes)
    _draw_predictions(predictions, result)
    _draw_states(states, result)
    _draw_losses(losses, result)
    losses.set_xlabel("Layer", color=INK)
    losses.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    losses.set_xlim(-0.7, len(result.layers) - 0.3)
    return figure


def _draw_predictions(axes: Axes, result: InspectionResult) -> None:
    _line(axes, result, "agreement", "predicts what the last layer does", BLUE, "o")
    _line(axes, result, "saturation", "and so do all later layers", ORANGE, "s")
    _line(axes, result, "confidence", "its mean softmax response: above the blue line it is too sure", GREEN, "^")
    oracle = result.oracle_layers.value
    axes.axvline(oracle - 1, color=FAINT, linestyle="--", linewidth=1.2)
    axes.annotate(
        f"oracle exit: {oracle:.1f} layers on average",
        (oracle - 1, 1.0),
        xytext=(-5, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        color=INK,
        fontsize=9.5,
    )
    axes.set_ylim(-0.03, 1.06)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("Prediction of each layer", loc="left", color=INK, fontsize=11)
    axes.set_ylabel("Share of decode steps", color=INK)
    axes.legend(frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(0, 0.92))


def _draw_states(axes: Axes, result: InspectionResult) -> None:
    _line(axes, result, "cosine", "", BLACK, "D")
    axes.set_title("Cosine of each layer's output and its input", loc="left", color=INK, fontsize=11)
    axes.set_ylabel("Cosine", color=INK)


def _draw_losses(axes: Axes, result: InspectionResult) -> None:
    cheapest = result.cheapest_first[:CHEAPEST]
    losses = [row.dropped_loss for row in result.layers]
    for row in result.layers:
        layer, loss = row.layer, row.dropped_loss
        axes.bar(layer, loss.value, color=GREEN if layer in cheapest else BLUE, width=0.75)
        axes.vlines(layer, loss.low, loss.high, color=INK, linewidth=1)
    drawn = np.array([[loss.value, loss.low, loss.high] for loss in losses])  # no interval: not a number
    lowest, highest = np.nanmin(drawn), np.nanmax(drawn)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_yscale("symlog", linthresh=LINEAR_BELOW)
    axes.set_yticks([tick for tick in (-1, -0.1, 0, 0.1, 1, 10) if lowest <= tick <= 10 * highest])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(min(1.2 * lowest, -0.01), max(1.3 * highest, LINEAR_BELOW))
    axes.set_title(
        f"Loss of dropping each layer alone (green: the {len(cheapest)} that cost least; linear below {LINEAR_BELOW})",
        loc="left",
        color=INK,
        fontsize=11,
    )
    axes.set_ylabel("Nats per token", color=INK)


def _line(axes: Axes, result: InspectionResult, name: str, label: str, colour: str, marker: str) -> None:
    """Draw one figure of all layers, with its intervals as a band."""
    figures: list[Estimate] = [getattr(layer, name) for layer in result.layers]
    layers = range(len(figures))
    axes.plot(layers, [figure.value for figure in figures], color=colour, marker=marker, markersize=4.5, label=label)
    low, high = [figure.low for figure in figures], [figure.high for figure in figures]
    axes.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
