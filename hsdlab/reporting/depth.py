"""Which layers ran where in the text: from the records of a prediction file to arrays and a heat map."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hsdlab.records.bootstrap import FloatArray
from hsdlab.records.comparison import ComparisonRow
from hsdlab.records.example import ExampleRecord
from hsdlab.records.layer_ranges import layers_in
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.reporting.pareto import FAINT, INK
from hsdlab.reporting.token_texts import spaced_tokens

DEPTH_COLOURS = "Blues"  # one hue from light to dark: the order survives colour blindness and grey printing
NO_ROW = "#e4e4e4"
COLUMNS = 3
PANEL_INCHES = (3.7, 2.5)


def shares_run(examples: Sequence[ExampleRecord], num_layers: int) -> FloatArray:
    """Compute how often each layer ran in each decode step.

    Args:
        examples: Only their `layers` are read.
        num_layers: L of the model.

    Returns:
        Float64 [steps, layers], 0 to 1. It is the share for which the layer ran, among the examples that took the
        decode step. A layer of which only attention or only the MLP ran counts as half. `steps` is the number of steps
        of the longest example.
    """
    columns = zip_longest(*(example.layers for example in examples))
    counters = [Counter(ranges for ranges in column if ranges is not None) for column in columns]
    shares = np.zeros((len(counters), num_layers))
    for step, counts in enumerate(counters):
        for ranges, count in counts.items():
            layers = layers_in(ranges)
            shares[step, list(layers)] += count * np.array(list(layers.values()))
        shares[step] /= counts.total()
    return shares


def token_depths(example: ExampleRecord, num_layers: int) -> list[tuple[str, float]]:
    """Pair each new token's text with the number of layers that made it.

    Args:
        example: Its `tokens`, `prediction` and `layers` are read.
        num_layers: L of the model. The prefill, which makes the first token, runs all of them.

    Returns:
        (text, layers) for each new token, with the space before it where the prediction has one. Empty where the tokens
        were not recorded.
    """
    if not example.tokens:
        return []
    depths = [num_layers, *(sum(layers_in(ranges).values()) for ranges in example.layers)]
    return list(zip(spaced_tokens(example), depths, strict=True))


def depth_figure(rows: Sequence[ComparisonRow], results: Sequence[StrategyResult]) -> Figure:
    """Draw a heat map for each strategy: position in the text to the right, layer upwards.

    The colour is the share of examples for which the layer ran, among those that took the decode step; all
    panels share it and their axes. Grey: no text was that long; the legend says so.

    Args:
        rows: Rows of a comparison, at least one.
        results: The result of each row, with its examples.

    Returns:
        A figure on the Agg canvas, apart from pyplot's global state.
    """
    shares = [shares_run(result.examples, result.num_layers) for result in results]
    columns = min(COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    width, height = PANEL_INCHES
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width * columns + 1.2, height * lines + 0.4), layout=layout)
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    last_step = max(1, *(len(each) for each in shares)) - 0.5
    images = [_draw_panel(axes, row, each, last_step) for axes, row, each in zip(grid.flat, rows, shares, strict=False)]
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for axes in grid.flat[max(0, len(rows) - columns) : len(rows)]:  # the lowest panel of each column
        axes.tick_params(labelbottom=True)
    figure.supxlabel("Decode step", color=INK, fontsize=10)
    figure.supylabel("Layer", color=INK, fontsize=10)
    bar = figure.colorbar(images[0], ax=grid, aspect=12 * lines, pad=0.02)
    bar.set_label("Share of examples for\nwhich the layer ran", color=INK)
    if any(0 < len(each) < last_step for each in shares):
        grey = Patch(facecolor=NO_ROW, edgecolor=FAINT, label="no text was that long")
        figure.legend(handles=[grey], loc="outside lower right", frameon=False, labelcolor=INK, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK)
    return figure


def _draw_panel(axes: Axes, row: ComparisonRow, shares: FloatArray, last_step: float) -> AxesImage:
    """Draw one strategy's shares, [steps, layers]."""
    layers = row.num_layers
    image = axes.imshow(
        shares.T if len(shares) else np.full((layers, 1), np.nan),
        cmap=DEPTH_COLOURS,
        vmin=0,
        vmax=1,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_facecolor(NO_ROW)
    axes.set_xlim(-0.5, last_step)
    axes.set_ylim(-0.5, layers - 0.5)
    axes.spines[:].set_color(FAINT)
    axes.tick_params(colors=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    average = f"{row.average_layers:.1f} of {layers} layers" if math.isfinite(row.average_layers) else "no decode step"
    title = "\n".join([*wrap(f"{row.number}  {row.label}", 42), average])
    axes.set_title(title, fontsize=9.5, color=INK, loc="left", parse_math=False)
    if not len(shares):
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=INK)
    return image
