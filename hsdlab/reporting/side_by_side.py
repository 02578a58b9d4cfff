"""Two or more models under the same strategies: one table, one picture."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from hsdlab.records.comparison import Comparison, ComparisonRow
from hsdlab.records.labels import METRIC_LABELS
from hsdlab.reporting.markdown import markdown_table
from hsdlab.reporting.pareto import COLOURS, FAINT, INK
from hsdlab.reporting.tables import MISSING, TOO_FAST, interval, number, significant, terminal_table

MARKERS = ("s", "o", "^", "D")
HEIGHT_PERCENT = 165
"""Top of the y-axis: above 100 % there is room for the names."""


def by_strategy(comparison: Comparison) -> dict[str, dict[str, ComparisonRow]]:
    """Group the rows of a comparison of several runs by strategy.

    Args:
        comparison: Of one run or more. A run need not have every strategy.

    Returns:
        Strategy -> run -> row, in the order of the rows.
    """
    found: dict[str, dict[str, ComparisonRow]] = {}
    for row in comparison.rows:
        found.setdefault(_label(row), {})[row.run] = row
    return found


def side_by_side_table(comparison: Comparison) -> str:
    """Render the table as Markdown.

    Args:
        comparison: Of several runs over the same examples. The first run's full depth is 100 %.

    Returns:
        A line a strategy; for each run its average layers, quality, % of the baseline and milliseconds per decode step.
    """
    header, rows = _cells(comparison)
    return markdown_table(header, [[f"`{row[0]}`", *row[1:]] for row in rows])


def side_by_side_terminal(comparison: Comparison) -> Table:
    """Make the same table for a terminal of 120 columns.

    Args:
        comparison: Of several runs over the same examples. The first run's full depth is 100 %.

    Returns:
        A table of rich, in which quality and % of the baseline share a cell.
    """
    metric, runs = comparison.headline_metric, _runs(comparison)
    names = ("layers", METRIC_LABELS[metric], "ms per step")
    header = [f"{run if column == 0 else ''}\n{name}" for run in runs for column, name in enumerate(names)]
    table = terminal_table("", "\nStrategy", header)
    for column in table.columns:
        column.no_wrap = True
    for label, found in by_strategy(comparison).items():
        cells = []
        for run in runs:
            layers, value, share, step_ms = _of_run(found.get(run), metric)
            percent, _, ends = share.partition(" ")
            cells += [layers, f"{value} {percent}%\n{ends}".rstrip(), step_ms]
        table.add_row(label, *cells)
    return table


def _cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    metric, runs = comparison.headline_metric, _runs(comparison)
    header = ["Strategy"]
    for run in runs:
        header += [f"{run}: {name}" for name in ("layers", METRIC_LABELS[metric], "%", "ms per step")]
    rows = []
    for label, found in by_strategy(comparison).items():
        cells = [label]
        for run in runs:
            cells += _of_run(found.get(run), metric)
        rows.append(cells)
    return header, rows


def _of_run(row: ComparisonRow | None, metric: str) -> list[str]:
    if row is None:
        return [MISSING] * 4
    share = row.percent_of_baseline[metric]
    ends = interval(share, 0)
    return [
        number(row.average_layers, 1),
        number(row.quality[metric].value, 3),
        number(share.value, 0) + (f" [{ends}]" if ends and not row.is_baseline else ""),
        significant(row.figure("decode_step_ms")) + (f" {TOO_FAST}" if row.faster_than_its_layers else ""),
    ]


def side_by_side_figure(comparison: Comparison) -> Figure:
    """Draw each run's strategies: quality against average layers (left) and against time (right).

    Args:
        comparison: Of several runs over the same examples. The first run's full depth is 100 %.

    Returns:
        A figure of 12 by 5 inches on the Agg canvas, apart from pyplot's global state.
    """
    metric, runs = comparison.headline_metric, _runs(comparison)
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, cost in ((left, "average_layers"), (right, "decode_step_ms")):
        _prepare(axes)
        for run, colour, marker in zip(runs, COLOURS[2:0:-1] + COLOURS[3:], MARKERS, strict=False):
            rows = [row for row in comparison.rows if row.run == run and math.isfinite(row.figure(cost))]
            _draw(axes, rows, cost, metric, {"color": colour, "marker": marker, "label": run}, named=run == runs[-1])
    left.set_xlabel(f"Average layers per decode step (of {comparison.baseline.num_layers})", color=INK)
    right.set_xlabel("Milliseconds per decode step, measured", color=INK)
    left.set_ylabel(f"{METRIC_LABELS[metric]}, % of the model {runs[0]} at full depth", color=INK)
    left.set_yticks(range(0, 101, 20))
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside upper left", ncols=len(runs), frameon=False, labelcolor=INK
    )
    return figure


def _prepare(axes: Axes) -> None:
    axes.grid(color="#ececec", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.axhline(100, color=FAINT, linewidth=0.8, linestyle=":")
    axes.set_ylim(0, HEIGHT_PERCENT)
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _draw(
    axes: Axes, rows: Sequence[ComparisonRow], cost: str, metric: str, style: Mapping[str, Any], named: bool
) -> None:
    """Draw a run's points with their intervals, joined in the order of the cost; write their names above them."""
    points = sorted((row.figure(cost), row.percent_of_baseline[metric], _label(row)) for row in rows)
    x, shares = [point[0] for point in points], [point[1] for point in points]
    y = [share.value for share in shares]
    low, high = ([getattr(share, end) for share in shares] for end in ("low", "high"))
    axes.vlines(x, low, high, color=style["color"], linewidth=1.4, alpha=0.4)
    if cost == "average_layers":  # times of one run go up and down with the machine
        axes.plot(x, y, color=style["color"], linewidth=1.0, linestyle="--", alpha=0.5)
    axes.plot(x, y, **style, linestyle="none", markersize=8, markeredgecolor="white")
    if not named:
        return
    for place, top, (_, _, label) in zip(x, high, points, strict=True):
        axes.annotate(
            label,
            (place, top),
            xytext=(0, 6),
            textcoords="offset points",
            rotation=50,
            rotation_mode="anchor",
            ha="left",
            va="bottom",
            fontsize=8.5,
            color=style["color"],
        )


def _runs(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(row.run for row in comparison.rows))


def _label(row: ComparisonRow) -> str:
    return row.label.removeprefix(f"{row.run}: ").removesuffix("()")
