"""Two or more models under the same strategies: one table, one picture."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from hsdlab.records.comparison import Comparison, ComparisonRow
from hsdlab.records.labels import METRIC_LABELS
from hsdlab.reporting.figures import settle_layout
from hsdlab.reporting.markdown import markdown_table
from hsdlab.reporting.pareto import COLOURS, FAINT, INK, Labelled, label_points, mark_handles
from hsdlab.reporting.tables import MISSING, interval, number, significant, terminal_table, time_mark

MARKERS = ("s", "o", "^", "D")
HEIGHT_PERCENT = 125
"""Top of the y-axis."""


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
        significant(row.figure("decode_step_ms")) + (f" {mark}" if (mark := time_mark(row)) else ""),
    ]


def side_by_side_figure(comparison: Comparison) -> Figure:
    """Draw each run's strategies: quality against average layers (left) and against time (right).

    The numbers of the points are the places of the strategies in the table; the legend explains them.

    Args:
        comparison: Of several runs over the same examples. The first run's full depth is 100 %.

    Returns:
        A figure of 12 by 5 inches on the Agg canvas, apart from pyplot's global state.
    """
    metric, runs = comparison.headline_metric, _runs(comparison)
    numbers = {label: number for number, label in enumerate(by_strategy(comparison), start=1)}
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    written: dict[Axes, list[Labelled]] = {left: [], right: []}
    for axes, cost in ((left, "average_layers"), (right, "decode_step_ms")):
        _prepare(axes)
        for run, colour, marker in zip(runs, COLOURS[2:0:-1] + COLOURS[3:], MARKERS, strict=False):
            rows = [row for row in comparison.rows if row.run == run and math.isfinite(row.figure(cost))]
            points = sorted((_labelled(row, cost, metric, colour, numbers) for row in rows), key=lambda point: point.x)
            _draw(axes, points, {"color": colour, "marker": marker, "label": run}, joined=axes is left)
            written[axes] += points
    left.set_xlabel(f"Average layers per decode step (of {comparison.baseline.num_layers})", color=INK)
    right.set_xlabel("Milliseconds per decode step, measured", color=INK)
    left.set_ylabel(f"{METRIC_LABELS[metric]}, % of the model {runs[0]} at full depth", color=INK)
    left.set_yticks(range(0, 101, 20))
    handles = [
        *left.get_legend_handles_labels()[0],
        *(Line2D([], [], linestyle="none", label=f"{number}  {label}") for label, number in numbers.items()),
        *mark_handles(comparison.rows),
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=INK)
    settle_layout(figure)  # in which the labels are measured
    for axes, points in written.items():
        label_points(axes, points)
    return figure


def _prepare(axes: Axes) -> None:
    axes.grid(color="#ececec", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.axhline(100, color=FAINT, linewidth=0.8, linestyle=":", label="100 %")
    axes.set_ylim(0, HEIGHT_PERCENT)
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _labelled(row: ComparisonRow, cost: str, metric: str, colour: str, numbers: Mapping[str, int]) -> Labelled:
    """Return a row's point, with its number; beside a time also its mark."""
    share, mark = row.percent_of_baseline[metric], "" if cost == "average_layers" else time_mark(row)
    return Labelled(f"{numbers[_label(row)]}{mark}", row.figure(cost), share.value, share.low, share.high, colour)


def _draw(axes: Axes, points: Sequence[Labelled], style: Mapping[str, Any], joined: bool) -> None:
    """Draw a run's points with their intervals; join them in the order of the cost."""
    x, y = [point.x for point in points], [point.y for point in points]
    low, high = [point.low for point in points], [point.high for point in points]
    axes.vlines(x, low, high, color=style["color"], linewidth=1.4, alpha=0.4)
    line = "--" if joined else "none"  # times of one run go up and down with the machine
    axes.plot(x, y, **style, linestyle=line, linewidth=0.8, markersize=8, markeredgecolor="white")


def _runs(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(row.run for row in comparison.rows))


def _label(row: ComparisonRow) -> str:
    return row.label.removeprefix(f"{row.run}: ")
