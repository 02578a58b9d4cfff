"""A comparison as text: tables in Markdown and on the terminal, with the notes that say how to read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hsdlab.records import bootstrap

if TYPE_CHECKING:
    from hsdlab.records.comparison import Comparison, Estimate, Row

METRIC_LABELS = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "bertscore_precision": "BERTScore P",
    "bertscore_recall": "BERTScore R",
    "bertscore_f1": "BERTScore F1",
}
TERMINAL_METRICS = ("rouge1", "rouge2", "rougeL", "bleu4", "bertscore_f1")
COST_HEADER = (
    "Avg. layers",
    "% of layers",
    "Computed layers",
    "Measured speed-up",
    "ms per decode step",
    "Tokens/s",
    "Prompt ms",
    "GFLOPs per token",
    "Cache peak MiB",
)
MISSING = "–"
SLOW, TOO_FAST = "†", "‡"


def notes(comparison: Comparison) -> list[str]:
    """Return how to read the tables, a sentence or two a note."""
    baseline = comparison.baseline
    named = f"{baseline.name} is the baseline (100 %)"
    if not comparison.has_full_depth:
        named = f"FullDepth was not run: the first strategy, {named}"
    lines = [
        f"{named}. {len(baseline.examples)} examples, {baseline.num_layers} layers.",
        f"Intervals: {bootstrap.LEVEL:.0%} percentile bootstrap over the examples ({bootstrap.RESAMPLES} "
        "resamples); those of the % of baseline draw the same examples on both sides.",
        "Average layers: mean over the decode steps of the returned texts; computed layers: over all live "
        "beams. Neither is a speed-up: that is measured, decode steps only, the prompt pass apart.",
    ]
    if any(row.saves_layers_but_no_time for row in comparison.rows):
        lines.append(f"{SLOW} Layers were saved, but a decode step took longer than the baseline's.")
    if any(row.result.is_oracle for row in comparison.rows):
        lines.append(
            "An oracle looks at layers that it then claims not to have run: an upper bound, not a method, without a "
            "time or a speed-up."
        )
    if any(row.faster_than_its_layers for row in comparison.rows):
        lines.append(
            f"{TOO_FAST} More than the layers allow: the machine did other work while one of the two was measured. "
            "Do not trust it; in `evaluate.py bench` the strategies take turns."
        )
    return lines


def markdown(comparison: Comparison, run: str) -> str:
    """Return the whole report in Markdown, with the run's provenance (JSON text) folded at its end."""
    parts = [
        "# Comparison of decoding strategies",
        report_tables(comparison),
        "![Quality against average layers and against time](pareto.png)",
        "## Layers by position in the text",
        "The darker, the more of the examples ran the layer in that decode step; grey where none was so long.",
        "![Which layers ran in each decode step](depth.png)",
        f"<details><summary>The run</summary>\n\n```json\n{run}\n```\n\n</details>",
    ]
    return "\n\n".join(parts) + "\n"


def report_tables(comparison: Comparison) -> str:
    """Return the notes and the tables of quality and cost in Markdown."""
    labels = [METRIC_LABELS[name] for name in comparison.metrics]
    rows = comparison.rows
    quality = [
        [_layers(row), *(_estimate(row.quality[name], 3) for name in comparison.metrics), _tokens(row)] for row in rows
    ]
    percent = [[_layers(row), *(percent_of_baseline(row, name) for name in comparison.metrics)] for row in rows]
    parts = [
        "\n".join(f"- {note}" for note in notes(comparison)),
        "## Quality",
        pipe_table(rows, ["Avg. layers", *labels, "Output tokens"], quality),
        "## Quality as % of the baseline",
        pipe_table(rows, ["Avg. layers", *labels], percent),
        "## Cost",
        pipe_table(rows, COST_HEADER, [costs(row) for row in rows]),
    ]
    return "\n\n".join(parts)


def print_tables(comparison: Comparison, console: Console) -> None:
    """Print quality above cost; value and % of baseline share a cell, the interval stands below them."""
    metrics = [name for name in TERMINAL_METRICS if name in comparison.metrics]
    header = ["Avg.\nlayers", *(METRIC_LABELS[name] for name in metrics), "Tokens"]
    quality = terminal_table("Quality (value, % of the baseline, interval)", header)
    cost = terminal_table("Cost", COST_HEADER)
    for row in comparison.rows:
        style = "bold" if row.is_baseline else ""
        cells = [_two_lines(row.quality[name], 3, row.percent_of_baseline[name].value) for name in metrics]
        quality.add_row(Text(_name(row)), _layers(row), *cells, _two_lines(row.output_tokens, 1), style=style)
        cost.add_row(Text(_name(row)), *costs(row), style="yellow" if row.saves_layers_but_no_time else style)
    console.print(quality)
    console.print(cost)
    for note in notes(comparison):
        console.print(Text(note, style="dim"))


def terminal_table(title: str, header: Sequence[str]) -> Table:
    """Return a table for the terminal, without rows, whose first column names the strategies."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("Strategy", width=24, overflow="fold")
    for name in header:
        table.add_column(name, justify="right", min_width=max(map(len, name.split())))
    return table


def pipe_table(rows: Sequence[Row], header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first column names the strategies."""
    return named_pipe_table([_name(row, "`") for row in rows], header, cells)


def named_pipe_table(names: Sequence[str], header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first column holds these names of strategies."""
    lines = [["Strategy", *header], ["---", *("---:" for _ in header)]]
    lines += [[name, *line] for name, line in zip(names, cells, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def costs(row: Row) -> list[str]:
    """Return the cells under `COST_HEADER`."""
    speed_up = _number(row.speed_up, 2)
    mark = SLOW if row.saves_layers_but_no_time else TOO_FAST if row.faster_than_its_layers else ""
    return [
        _layers(row),
        _number(row.percent_of_layers, 1),
        _number(row.cost("compute_layers"), 2),
        speed_up if speed_up == MISSING else f"{speed_up}× {mark}".strip(),
        _significant(row.cost("decode_step_ms")),
        _significant(row.cost("tokens_per_second")),
        _significant(row.cost("prompt_ms")),
        _significant(row.cost("flops_per_token") / 1e9),
        _significant(row.cost("cache_peak_mib")),
    ]


def _name(row: Row, quote: str = "") -> str:
    return f"{quote}{row.result.name}{quote}{' (oracle)' if row.result.is_oracle else ''}"


def _layers(row: Row) -> str:
    return _number(row.average_layers, 2)


def _tokens(row: Row) -> str:
    return _estimate(row.output_tokens, 1)


def percent_of_baseline(row: Row, metric: str) -> str:
    """Return a quality as % of the baseline's, with its interval."""
    figure = row.percent_of_baseline[metric]
    return _number(figure.value, 1) if row.is_baseline else _estimate(figure, 1)


def _estimate(figure: Estimate, digits: int) -> str:
    """Return "value [low, high]"."""
    interval = _interval(figure, digits)
    return f"{_number(figure.value, digits)} [{interval}]" if interval else _number(figure.value, digits)


def _two_lines(figure: Estimate, digits: int, percent: float = math.nan) -> str:
    """Return the value, with its percentage of the baseline if there is one, and the interval below."""
    share = "" if math.isnan(percent) else f" {percent:.0f}%"
    return f"{_number(figure.value, digits)}{share}\n{_interval(figure, digits)}"


def _interval(figure: Estimate, digits: int) -> str:
    if not all(map(math.isfinite, figure)):
        return ""
    return f"{figure.low:.{digits}f}, {figure.high:.{digits}f}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else MISSING


def _significant(value: float) -> str:
    """Return three significant digits, never an exponent."""
    if not math.isfinite(value):
        return MISSING
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"
