"""The picture of a bench: speed-up against the share of layers that are executed, a panel for each cell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hsdlab.records.bench import EARLY_EXIT, LAYERS_REMOVED, PLAIN, BenchCell, BenchResult, BenchSide
from hsdlab.reporting.pareto import COLOURS, FAINT, INK, MARKERS, Style

COLUMNS = 4
"""The most panels side by side."""
DASHES = {PLAIN: (0, (1, 2)), EARLY_EXIT: (0, (5, 2))}
"""How the line of a side without a share of layers is drawn."""


def cell_title(cell: BenchCell, dtype: bool = True) -> str:
    """Name a cell by its conditions.

    Args:
        cell: The cell.
        dtype: Whether to name the dtype too.

    Returns:
        Such as "batch 8, 4 beams, bfloat16, 4 batches of prompts of 100 tokens".
    """
    shortest, longest = min(cell.prompt_tokens), max(cell.prompt_tokens)
    length = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    batches = len(cell.prompt_tokens) // cell.batch_size
    many = "" if batches == 1 else "es" if cell.batch_size > 1 else "s"
    prompts = f"prompt{many}" if cell.batch_size == 1 else f"batch{many} of prompts"
    how = "greedy" if cell.num_beams == 1 else f"{cell.num_beams} beams"
    words = [
        f"batch {cell.batch_size}",
        how,
        *([cell.dtype] if dtype else []),
        f"{batches} {prompts} of {length} tokens",
    ]
    return ", ".join(words)


def bench_figure(result: BenchResult) -> Figure:
    """Draw the speed-up over FullDepth against the share of layers that are executed in a decode step.

    Error bars are the quartiles over the rounds. A hollow marker is the same schedule with its layers removed. Plain
    `generate` and `assistant_early_exit` have no share of layers and are horizontal lines. The ideal line is (weights
    read at full depth) / (weights read at this share), for layers of equal size, head included.

    Args:
        result: Of one cell or more.

    Returns:
        A figure on the Agg canvas, apart from pyplot's global state, of a panel for each cell and a legend below.
    """
    columns = min(COLUMNS, len(result.cells))
    rows = math.ceil(len(result.cells) / columns)
    names = list(dict.fromkeys(side.name for cell in result.cells for side in cell.sides))
    styles = _styles(names)
    legend_columns = min(columns, 2)
    legend_height = 0.25 * math.ceil((len(names) + 1) / legend_columns) + 0.2
    width = max(6.4, 3.2 * columns)
    figure = Figure(figsize=(width, (4.2 if columns == 1 else 3.2) * rows + legend_height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes, cell in zip(panels, result.cells, strict=False):
        _draw_cell(axes, cell, styles, result.model.num_layers)
        conditions, _, prompts = cell_title(cell).rpartition(", ")
        axes.set_xlabel("Executed layers, %", color=INK)
        axes.set_ylabel("Speed-up over FullDepth", color=INK)
        axes.label_outer()
        axes.set_title(f"{conditions}\n{prompts}", fontsize=9, color=INK)
    for axes in list(panels)[len(result.cells) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], label=_short(name), **style) for name, style in styles.items()]
    handles.append(Line2D([], [], color=FAINT, label="ideal: weights read"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=legend_columns, frameon=False, labelcolor=INK, fontsize=8.5
    )
    return figure


def _short(name: str) -> str:
    """Return a name without the keywords of a strategy's arguments."""
    return re.sub(r"(?<=[(\s])\w+=(?=[^=])", "", name)


def _styles(names: Sequence[str]) -> dict[str, Style]:
    """Give each side its colour, marker and line; a schedule with its layers removed is its strategy's, hollow."""
    styles: dict[str, Style] = {}
    strategies = [name for name in names if not name.startswith((PLAIN, EARLY_EXIT, LAYERS_REMOVED))]
    for index, name in enumerate(strategies):
        marker = MARKERS[(index + index // len(MARKERS)) % len(MARKERS)]
        colour = COLOURS[index % len(COLOURS)]
        styles[name] = {"color": colour, "marker": marker, "markersize": 7, "linestyle": "none"}
    removed = {name: styles[name.removeprefix(LAYERS_REMOVED)] for name in names if name.startswith(LAYERS_REMOVED)}
    for index, name in enumerate(each for each in names if each.startswith((PLAIN, EARLY_EXIT))):
        dashes = next(dashes for start, dashes in DASHES.items() if name.startswith(start))
        styles[name] = {"color": COLOURS[-1 - index], "linestyle": dashes, "linewidth": 1.6}
    styles |= {name: style | {"markerfacecolor": "white"} for name, style in removed.items()}
    return {name: styles[name] for name in names}


def _draw_cell(axes: Axes, cell: BenchCell, styles: Mapping[str, Style], num_layers: int) -> None:
    """Draw the ideal line and all sides of a cell."""
    axes.grid(color="#ececec", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    shares = [_share(side, num_layers) for side in cell.sides]
    smallest = min((share for share in shares if share is not None), default=1.0)
    if cell.head_per_layers is not None:
        lowest = max(smallest - 0.05, 0.05)
        line = [lowest + (1 - lowest) * step / 50 for step in range(51)]
        ideal = [(1 + cell.head_per_layers) / (share + cell.head_per_layers) for share in line]
        axes.plot([100 * share for share in line], ideal, color=FAINT, zorder=1)
    for side, share in zip(cell.sides, shares, strict=True):
        style = dict(styles[side.name])
        speed_up = side.speed_up
        if share is None:
            axes.axhline(speed_up.median, zorder=2, **style)
            continue
        errors = [[speed_up.median - speed_up.low], [speed_up.high - speed_up.median]]
        axes.errorbar(100 * share, speed_up.median, yerr=errors, elinewidth=1.3, capsize=2.5, zorder=3, **style)


def _share(side: BenchSide, num_layers: int) -> float | None:
    """Return the share of layers that a side executes; None where it is not counted."""
    return None if side.average_layers is None else side.average_layers / num_layers
