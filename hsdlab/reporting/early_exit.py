"""Where tokens exit early: the pictures and the table of the strategies that decide by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hsdlab.records.comparison import ComparisonRow
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.reporting.coloured_text import TextBlock, coloured_text_figure, example_block
from hsdlab.reporting.depth import DEPTH_COLOURS
from hsdlab.reporting.markdown import markdown_table
from hsdlab.reporting.pareto import FAINT, INK
from hsdlab.reporting.tables import MISSING, number
from hsdlab.reporting.token_kinds import GROUPS, KIND, TEXT, THIRDS, exits_differ, layers_by_kind

HISTOGRAM, SAMPLE = "early_exit.png", "early_exit_text.png"
SAMPLES = 3
SHADES = (0.95, 0.65, 0.35)  # on the scale of depth, of the thirds of a text
LINE_INCHES = 0.19  # of a bar

Kinds = Mapping[tuple[str, str], Sequence[float]]
"""(group, kind) -> the layers of each token."""


def deciding_by_token(
    rows: Sequence[ComparisonRow], results: Sequence[StrategyResult]
) -> list[tuple[ComparisonRow, StrategyResult]]:
    """Choose the strategies whose layers differ between the tokens of one decode step.

    Args:
        rows: Rows of a comparison.
        results: The result of each row, with its examples.

    Returns:
        Those rows with their results; none where all strategies are schedules.
    """
    return [(row, result) for row, result in zip(rows, results, strict=True) if exits_differ(result)]


def early_exit_markdown(chosen: Sequence[tuple[ComparisonRow, StrategyResult]]) -> str:
    """Render the table of executed layers by kind of token, and the pictures.

    Args:
        chosen: What `deciding_by_token` gave, at least one.

    Returns:
        Markdown of a section, without a line break at its end.
    """
    columns = [layers_by_kind(result.examples, result.num_layers) for _, result in chosen]
    lines: list[list[str]] = []
    for group, kinds in GROUPS.items():
        for kind in kinds:
            cells = [_cell(column, group, kind) for column in columns]
            if any(cell != MISSING for cell in cells):
                shown = group if group not in {first for first, *_ in lines} else ""
                lines.append([shown, kind, *cells])
    header = ["", "Tokens", *(f"{row.number} {row.label}" for row, _ in chosen)]
    return "\n\n".join(
        [
            "## Where tokens exit early",
            "Executed layers per token (mean), with the share of the tokens in brackets. The first token of a text is "
            "not counted: it comes from the prefill, at full depth. A word is in the source if the source has it as a "
            "whole. The thirds are of the tokens of each sentence and of each text.",
            markdown_table(header, lines, align=["left", "left", *["right"] * len(chosen)]),
            f"![Tokens by executed layers, and executed layers by kind of token]({HISTOGRAM})",
            f"![Texts with each token coloured by its executed layers]({SAMPLE})",
        ]
    )


def early_exit_figure(chosen: Sequence[tuple[ComparisonRow, StrategyResult]]) -> Figure:
    """Draw for each strategy the tokens by executed layers (left) and the mean of each kind of token (right).

    Args:
        chosen: What `deciding_by_token` gave, at least one.

    Returns:
        A figure on the Agg canvas, apart from pyplot's global state.
    """
    columns = [layers_by_kind(result.examples, result.num_layers) for _, result in chosen]
    heights = [LINE_INCHES * (len(column) + len(GROUPS)) + 0.9 for column in columns]
    figure = Figure(figsize=(11, sum(heights) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(chosen), 2, squeeze=False, height_ratios=heights)
    for (left, right), (row, result), layers in zip(grid, chosen, columns, strict=True):
        _draw_histogram(left, layers, result.num_layers)
        _draw_kinds(right, layers, result.num_layers)
        title = wrap(f"{row.number}  {row.label}: {row.average_layers:.1f} of {row.num_layers} layers", 62)
        left.set_title("\n".join(title), fontsize=9.5, color=INK, loc="left", parse_math=False)
        left.sharey(grid[0, 0])
    grid[0, 0].autoscale(axis="y")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, labelcolor=INK, fontsize=8.5)
    return figure


def early_exit_text_figure(chosen: Sequence[tuple[ComparisonRow, StrategyResult]]) -> Figure:
    """Draw the first texts of each strategy, each token on the colour of its depth.

    Args:
        chosen: What `deciding_by_token` gave, at least one.

    Returns:
        A figure on the Agg canvas, apart from pyplot's global state.
    """
    (_, first), *_ = chosen
    blocks = []
    for sample in first.examples[:SAMPLES]:
        blocks.append(TextBlock(sample.id, sample.source))
        for row, result in chosen:
            example = next(each for each in result.examples if each.id == sample.id)
            blocks.append(example_block(f"{row.number} {row.label}", example, row.num_layers))
    return coloured_text_figure(blocks, first.num_layers)


def _cell(layers: Kinds, group: str, kind: str) -> str:
    """Return the mean of a kind with its share among the tokens of the strategy."""
    found = layers.get((group, kind), ())
    return f"{number(float(np.mean(found)), 1)} ({len(found) / _tokens(layers):.0%})" if found else MISSING


def _tokens(layers: Kinds) -> int:
    """Return the number of tokens; each has one place in its text."""
    return sum(len(layers.get((TEXT, third), ())) for third in THIRDS)


def _draw_histogram(axes: Axes, layers: Kinds, num_layers: int) -> None:
    """Draw the share of the tokens by executed layers, the thirds of the text upon each other."""
    colours = matplotlib.colormaps[DEPTH_COLOURS]
    edges = np.arange(num_layers + 2) - 0.5
    below = np.zeros(num_layers + 1)
    for third, shade in zip(THIRDS, SHADES, strict=True):
        counts, _ = np.histogram(layers.get((TEXT, third), ()), edges)
        share = counts / _tokens(layers)
        axes.bar(range(num_layers + 1), share, 0.9, bottom=below, color=colours(shade), label=f"{third} of the text")
        below += share
    axes.set_xlim(0, num_layers + 0.6)
    axes.set_xlabel("Executed layers", color=INK)
    axes.set_ylabel("Share of the tokens", color=INK)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _settle(axes)


def _draw_kinds(axes: Axes, layers: Kinds, num_layers: int) -> None:
    """Draw the mean of each kind as a bar, with a heading for each group."""
    names: list[str] = []
    for group in GROUPS:
        names.append(group)
        found = {kind: layers[group, kind] for kind in GROUPS[group] if (group, kind) in layers}
        for kind, each in found.items():
            mean = float(np.mean(each))
            colour = matplotlib.colormaps[DEPTH_COLOURS](0.65 if group == KIND else 0.45)
            axes.barh(len(names), mean, 0.75, color=colour)
            tokens = f"{mean:.1f}   {len(each)} token{'s' * (len(each) != 1)}"
            axes.text(mean + num_layers / 100, len(names), tokens, color=INK, fontsize=7.5, va="center")
            names.append(kind)
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    for name, label in zip(names, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if name in GROUPS else "normal")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, num_layers * 1.2)  # room for what is written beside the longest bar
    axes.set_xlabel("Executed layers, mean", color=INK)
    _settle(axes)
    axes.tick_params(axis="y", length=0)


def _settle(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK)
