"""A comparison for people: tables in Markdown and on the terminal, pictures, notes on how to read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.text import Text

from hsdlab.records.bootstrap import Estimate
from hsdlab.records.comparison import Comparison, ComparisonRow
from hsdlab.records.files import replace_file
from hsdlab.records.labels import METRIC_LABELS
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.reporting.acceptance import acceptance_figure, acceptance_notes
from hsdlab.reporting.depth import depth_figure
from hsdlab.reporting.early_exit import (
    HISTOGRAM,
    SAMPLE,
    deciding_by_token,
    early_exit_figure,
    early_exit_markdown,
    early_exit_text_figure,
)
from hsdlab.reporting.figures import Picture, replace_figure
from hsdlab.reporting.markdown import folded_run, markdown_table
from hsdlab.reporting.pareto import pareto_figure
from hsdlab.reporting.tables import (
    COST_HEADER,
    TERMINAL_COSTS,
    arguments_note,
    baseline_note,
    cost_cells,
    estimate,
    interval,
    interval_below,
    number,
    percent_of_baseline,
    quality_notes,
    shown_name,
    terminal_table,
    time_notes,
    widen_for_intervals,
)

FILE, ACCEPTANCE = "comparison.json", "acceptance.png"
TERMINAL_METRICS = ("rouge1", "rouge2", "rougeL", "bleu4", "bertscore_f1")


def write_comparison(comparison: Comparison, results: Sequence[StrategyResult], folder: Path) -> dict[str, Picture]:
    """Write comparison.md, comparison.json, pareto.png and depth.png, each whole or not at all.

    acceptance.png is written only where drafts were verified, early_exit.png and early_exit_text.png only where a
    strategy decides by token.

    Args:
        comparison: Made from the results.
        results: With their examples, in the order of the rows.
        folder: A missing folder is created. Files of an earlier comparison are replaced.

    Returns:
        The pictures by the names of their files without ".png", for TensorBoard.
    """
    figures = {
        "pareto.png": pareto_figure(comparison, comparison.headline_metric),
        "depth.png": depth_figure(comparison.rows, results),
    }
    acceptance = acceptance_figure(comparison.rows, results)
    if acceptance is not None:
        figures[ACCEPTANCE] = acceptance
    chosen = deciding_by_token(comparison.rows, results)
    if chosen:
        figures |= {HISTOGRAM: early_exit_figure(chosen), SAMPLE: early_exit_text_figure(chosen)}
    comparison.write(folder / FILE)
    pictures = {name.removesuffix(".png"): replace_figure(folder / name, figure) for name, figure in figures.items()}
    replace_file(folder / "comparison.md", comparison_markdown(comparison, results))
    return pictures


def pictures_in_words(pictures: Mapping[str, Picture]) -> str:
    """Name the files of the pictures in a sentence.

    Args:
        pictures: What `write_comparison` returned.

    Returns:
        Such as "pareto.png and depth.png".
    """
    *names, last = (f"{name}.png" for name in pictures)
    return f"{', '.join(names)} and {last}"


def notes(comparison: Comparison) -> list[str]:
    """Say how to read the tables.

    Args:
        comparison: Marks that its rows do not have are not explained.

    Returns:
        Notes of a sentence or two each.
    """
    rows = comparison.rows
    paired = "" if len(rows) == 1 else " Those of the % of baseline draw the same examples for both."
    lines = [
        baseline_note(comparison),
        f"Intervals: {comparison.bootstrap.level:.0%} percentile bootstrap over the examples "
        f"({comparison.bootstrap.resamples} resamples).{paired}",
        "Average depth: layers per decode step of the returned texts. Computed layers: the same over all live beams. "
        "Neither is a speed-up: that is measured, for decode steps only, prefill apart.",
        *_encoder_note(rows),
        *time_notes(rows, "the baseline"),
        *quality_notes(comparison),
        *arguments_note(rows),
        *acceptance_notes(rows),
    ]
    if any(row.speed_up_interval is not None for row in rows):
        lines.append("The interval of the speed-up draws the same batches for both strategies.")
    if any(row.is_oracle for row in rows):
        lines.append(
            "An oracle looks at layers that it then claims not to have run: an upper bound, not a method, without a "
            "time or a speed-up."
        )
    if len({row.run for row in rows}) > 1:
        lines.append("The rows come from several runs. Their times were measured at different moments: compare layers.")
    return lines


def comparison_markdown(comparison: Comparison, results: Sequence[StrategyResult] = ()) -> str:
    """Render the report as Markdown.

    Args:
        comparison: Of one strategy or more.
        results: The result of each row, with its examples. Without them the text does not say where tokens exit early.

    Returns:
        The text of comparison.md, with the run's provenance folded at its end.
    """
    parts = [
        "# Comparison of decoding strategies",
        comparison_tables(comparison),
        "![Quality against average depth and against time](pareto.png)",
        "## Layers by position in the text",
        "The darker a cell, the more examples ran that layer in that decode step. Grey: no text was that long.",
        "![Which layers ran in each decode step](depth.png)",
    ]
    if any(row.verifies for row in comparison.rows):
        parts += ["## Accepted drafts", f"![Drafts accepted by their place in the draft]({ACCEPTANCE})"]
    chosen = deciding_by_token(comparison.rows, results) if results else []
    if chosen:
        parts.append(early_exit_markdown(chosen))
    parts.append(folded_run(comparison.run))
    return "\n\n".join(parts) + "\n"


def comparison_tables(comparison: Comparison) -> str:
    """Render the notes and the tables of quality and cost, which comparison.md and TensorBoard share.

    Args:
        comparison: Of one strategy or more.

    Returns:
        Markdown, without a line break at its end.
    """
    labels = [METRIC_LABELS[name] for name in comparison.metrics]
    quality, percent, cost = [], [], []
    for row in comparison.rows:
        start = [shown_name(row, "`"), number(row.average_layers, 2)]
        values = [estimate(row.quality[name], 3) for name in comparison.metrics]
        quality.append([*start, *values, estimate(row.output_tokens, 1)])
        percent.append([*start, *(percent_of_baseline(row, name) for name in comparison.metrics)])
        cost.append([shown_name(row, "`"), *cost_cells(row)])
    parts = [
        "\n".join(f"- {note}" for note in notes(comparison)),
        "## Quality",
        markdown_table(["Strategy", "Average depth", *labels, "Output tokens"], quality),
        "## Quality as % of the baseline",
        markdown_table(["Strategy", "Average depth", *labels], percent),
        "## Cost",
        markdown_table(["Strategy", *COST_HEADER], cost),
    ]
    return "\n\n".join(parts)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print quality above cost. Value and % of the baseline share a cell, with the interval below them.

    One strategy alone is compared with nothing: its tables have neither % of the baseline nor a speed-up.

    Args:
        comparison: Of one strategy or more.
        console: Of 120 columns or more.
    """
    metrics, alone = [name for name in TERMINAL_METRICS if name in comparison.metrics], len(comparison.rows) == 1
    columns = [name for name in TERMINAL_COSTS if not (alone and name == "Measured speed-up")]
    header = ["Average\ndepth", *(METRIC_LABELS[name] for name in metrics), "Tokens"]
    quality = terminal_table(f"Quality (value, {'' if alone else '% of the baseline, '}interval)", "Strategy", header)
    cost = terminal_table("Cost", "Strategy", columns)
    widen_for_intervals(cost)
    for row in comparison.rows:
        style = "bold" if row.is_baseline else ""
        percent = {name: math.nan if alone else row.percent_of_baseline[name].value for name in metrics}
        cells = [_two_lines(row.quality[name], 3, percent[name]) for name in metrics]
        name = Text(shown_name(row))
        quality.add_row(name, number(row.average_layers, 2), *cells, _two_lines(row.output_tokens, 1), style=style)
        costs = [interval_below(cell) for cell in cost_cells(row, columns)]
        cost.add_row(name, *costs, style="yellow" if row.saves_layers_but_no_time else style)
    console.print(quality)
    console.print(cost)
    for note in notes(comparison):
        console.print(Text(note, style="dim"))


def _two_lines(figure: Estimate, digits: int, percent: float = math.nan) -> str:
    """Return the value, with its percentage of the baseline if there is one, and the interval below."""
    share = "" if math.isnan(percent) else f" {percent:.0f}%"
    return f"{number(figure.value, digits)}{share}\n{interval(figure, digits)}"


def _encoder_note(rows: Sequence[ComparisonRow]) -> list[str]:
    """Say which figures leave the encoder out, where there is one."""
    times = [row.figure("encoder_ms") for row in rows]
    times = [each for each in times if not math.isnan(each)]
    if not times:
        return []
    return [
        f"The encoder ran {median(times):.3g} ms a batch (median of the strategies), among the prefill's. It is in no "
        "speed-up, and not in the FLOPs per token."
    ]
