"""The picture of an inspection's confidence: calibration curves of some layers, and AUROC over the layers."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hsdlab.records.inspection import InspectedLayer, InspectionResult
from hsdlab.reporting.calibration_curve import plain_axes, prepare_calibration
from hsdlab.reporting.pareto import COLOURS, FAINT, INK

CURVES = 6  # layers whose calibration curve is drawn, where the model names no exits


def reliability_figure(result: InspectionResult) -> Figure:
    """Draw calibration curves of the softmax response, before too where there is a before, and AUROC by layer.

    Args:
        result: The inspection. Each of its layers has a `reliability`.

    Returns:
        A figure on the Agg canvas, 5 inches high, with 5 inches for each panel.
    """
    before = result.before
    figure = Figure(figsize=(15 if before else 10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    *curves, aurocs = figure.subplots(1, 3 if before else 2)
    shown = shown_layers(result)
    if before:
        _draw_curves(curves[0], before.layers, shown, "Calibration before")
    _draw_curves(curves[-1], result.layers, shown, "Calibration now" if before else "Calibration")
    _draw_aurocs(aurocs, result)
    return figure


def shown_layers(result: InspectionResult) -> tuple[int, ...]:
    """Choose the layers whose calibration curves are drawn.

    Args:
        result: The inspection.

    Returns:
        The exits for which the model was trained, or those of the model before. Where neither has any, at most
        `CURVES` layers, spread over all but the last.
    """
    exits = result.exits or (result.before.exits if result.before else ())
    below_last = max(len(result.layers) - 1, 1)
    return exits or tuple(sorted({round(place) for place in np.linspace(0, below_last - 1, CURVES)}))


def _draw_curves(axes: Axes, layers: Sequence[InspectedLayer], shown: Sequence[int], title: str) -> None:
    prepare_calibration(axes, "Softmax response")
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(shown)))
    for layer, colour in zip(shown, colours, strict=True):
        reliability = layers[layer].reliability
        if reliability is not None:
            drawn = np.array([reliability.confidence, reliability.rate]).T
            drawn = drawn[~np.isnan(drawn).any(axis=1)]  # (bins with cases, 2)
            axes.plot(*drawn.T, color=colour, marker="o", markersize=4, label=f"Layer {layer}")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.legend(frameon=False, labelcolor=INK)


def _draw_aurocs(axes: Axes, result: InspectionResult) -> None:
    models = [("", "-", result.layers), *([(", before", ":", result.before.layers)] if result.before else [])]
    for suffix, line, layers in models:
        for name, label, colour, marker in (
            ("auroc", "softmax response", COLOURS[1], "o"),
            ("saturation_auroc", "hidden-state saturation", COLOURS[2], "s"),
        ):
            values = [getattr(layer.reliability, name, np.nan) for layer in layers]
            axes.plot(values, color=colour, linestyle=line, marker=marker, markersize=4, label=label + suffix)
    for layer in result.exits:
        axes.axvline(
            layer, color=FAINT, linewidth=0.8, zorder=0, label="trained exit" if layer == result.exits[0] else None
        )
    axes.axhline(0.5, color=FAINT, linestyle="--", linewidth=1)
    axes.set_xlim(-0.5, len(result.layers) - 0.5)
    axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    axes.set_xlabel("Layer", color=INK)
    axes.set_ylabel("AUROC (0.5: tells nothing)", color=INK)
    axes.set_title("Does the confidence tell the final token?", loc="left", color=INK, fontsize=11)
    axes.legend(frameon=False, labelcolor=INK, loc="lower right")
    plain_axes(axes)
