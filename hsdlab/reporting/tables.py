"""What every table shares: cells of figures, the columns of cost, tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hsdlab.records.bootstrap import Estimate
from hsdlab.records.comparison import Comparison, ComparisonRow

COST_HEADER = (
    "Average depth",
    "% of layers",
    "Computed layers",
    "Measured speed-up",
    "ms per decode step",
    "Tokens/s",
    "Prefill ms",
    "GFLOPs per token",
    "MB read per token",
    "Cache peak MiB",
)
TERMINAL_COSTS = tuple(name for name in COST_HEADER if name != "% of layers")  # what 120 columns can hold
COSTS_OF_A_CHOICE = ("Average depth", "ms per decode step", "Measured speed-up")
"""The columns that a report of a choice shows."""
MISSING = "–"
SLOW, TOO_FAST = "†", "‡"
WIDTH = 120  # characters that the tables need; more than rich assumes where the output is a file


def console(quiet: bool = False) -> Console:
    """Make a console on which the tables fit.

    Args:
        quiet: Print nothing, as in all processes but the first.

    Returns:
        A console as wide as the terminal. It has 120 columns where the terminal is narrower or the output is a file.
    """
    made = Console(quiet=quiet)
    return made if made.is_terminal and made.width >= WIDTH else Console(width=WIDTH, quiet=quiet)


def terminal_table(title: str, first: str, header: Sequence[str]) -> Table:
    """Make a table for the terminal.

    Args:
        title: Above the table; may be empty.
        first: Header of the first column, which is text, 24 characters wide.
        header: Headers of the other columns, which are numbers. A header may break between words.

    Returns:
        The table, without rows.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, width=24, overflow="fold")
    for name in header:
        table.add_column(name, justify="right", min_width=max(map(len, name.split())))
    return table


def cost_cells(row: ComparisonRow, header: Sequence[str] = COST_HEADER) -> list[str]:
    """Format the cells of a strategy under some columns of cost.

    Args:
        row: The strategy. A figure that was not measured is written as `MISSING`.
        header: Names from `COST_HEADER`.

    Returns:
        One cell for each name. The speed-up has a mark where time and layers disagree (`time_notes`).
    """
    speed_up = number(row.speed_up, 2)
    mark = SLOW if row.saves_layers_but_no_time else TOO_FAST if row.faster_than_its_layers else ""
    cells = {
        "Average depth": number(row.average_layers, 2),
        "% of layers": number(row.percent_of_layers, 1),
        "Computed layers": number(row.figure("compute_layers"), 2),
        "Measured speed-up": speed_up if speed_up == MISSING else f"{speed_up}× {mark}".strip(),
        "ms per decode step": significant(row.figure("decode_step_ms")),
        "Tokens/s": significant(row.figure("tokens_per_second")),
        "Prefill ms": significant(row.figure("prompt_ms")),
        "GFLOPs per token": significant(row.figure("flops_per_token") / 1e9),
        "MB read per token": significant(row.figure("bytes_per_token") / 1e6),
        "Cache peak MiB": significant(row.figure("cache_peak_mib")),
    }
    return [cells[name] for name in header]


def cost_in_words(row: ComparisonRow) -> str:
    """Say how deep and how fast a strategy is.

    Args:
        row: The strategy.

    Returns:
        Part of a sentence, with average layers, milliseconds per decode step and, unless it is the baseline, the
        speed-up. Where the strategy is faster than its layers allow, a warning stands in place of the time.
    """
    layers, step, speed_up = cost_cells(row, COSTS_OF_A_CHOICE)
    text = f"{layers} of {row.num_layers} layers on average"
    if row.faster_than_its_layers:
        return f"{text}; times of this run are not to be trusted"
    text += f", {step} ms per decode step"
    return text if row.is_baseline else f"{text}, {speed_up.split()[0]} the speed of full depth"


def time_notes(rows: Sequence[ComparisonRow], baseline: str) -> list[str]:
    """Explain the marks on times.

    Args:
        rows: Rows of the table. Marks that none of them has are not explained.
        baseline: What the times are compared with, in words.

    Returns:
        No, one or two notes.
    """
    notes = []
    if any(row.saves_layers_but_no_time for row in rows):
        notes.append(f"{SLOW} Layers were saved, but a decode step took longer than {baseline}'s.")
    if any(row.faster_than_its_layers for row in rows):
        notes.append(
            f"{TOO_FAST} More than the layers allow: the machine did other work while one of the two was measured. "
            "Do not trust it. `bench` times the strategies in alternation."
        )
    return notes


def percent_of_baseline(row: ComparisonRow, metric: str) -> str:
    """Format a quality as % of the baseline's.

    Args:
        row: The strategy.
        metric: A key of its scores, such as "rougeL".

    Returns:
        The percentage with its interval; without one for the baseline itself.
    """
    figure = row.percent_of_baseline[metric]
    return number(figure.value, 1) if row.is_baseline else estimate(figure, 1)


def shown_name(row: ComparisonRow, quote: str = "") -> str:
    """Format a strategy's name.

    Args:
        row: The strategy.
        quote: Sign to put before and after the name, such as a backtick.

    Returns:
        The name with its run, if there are several, and "(oracle)" after an oracle's.
    """
    return f"{quote}{row.full_name}{quote}{' (oracle)' if row.is_oracle else ''}"


def estimate(figure: Estimate, digits: int, unit: float = 1) -> str:
    """Format a figure with its interval.

    Args:
        figure: The figure. NaN stands for what was not measured.
        digits: Digits after the point.
        unit: Factor on all numbers: 100 for percent.

    Returns:
        "value [low, high]", or the value alone where there is no interval.
    """
    ends = interval(figure, digits, unit)
    value = number(unit * figure.value, digits)
    return f"{value} [{ends}]" if ends else value


def interval(figure: Estimate, digits: int, unit: float = 1) -> str:
    """Format the interval of a figure.

    Args:
        figure: The figure. NaN stands for what was not measured.
        digits: Digits after the point.
        unit: Factor on all numbers: 100 for percent.

    Returns:
        "low, high"; empty where there is no interval.
    """
    if not all(map(math.isfinite, (figure.value, figure.low, figure.high))):
        return ""
    return f"{unit * figure.low:.{digits}f}, {unit * figure.high:.{digits}f}"


def number(value: float | None, digits: int) -> str:
    """Format a number.

    Args:
        value: None, NaN and infinity are written as `MISSING`.
        digits: Digits after the point.

    Returns:
        The number in fixed-point notation.
    """
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def significant(value: float) -> str:
    """Format a number with three significant digits, never with an exponent.

    Args:
        value: NaN and infinity are written as `MISSING`.

    Returns:
        The number; digits before the point are never rounded away.
    """
    if not math.isfinite(value):
        return MISSING
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def baseline_note(comparison: Comparison) -> str:
    """Say what the others are compared with.

    Args:
        comparison: Of one strategy or more.

    Returns:
        The baseline, the number of examples and the number of layers, in two sentences.
    """
    baseline = comparison.baseline
    named = f"{baseline.full_name} is the baseline (100 %)"
    if not comparison.has_full_depth:
        named = f"FullDepth was not run: the first strategy, {named}"
    return f"{named}. {baseline.examples} examples, {baseline.num_layers} layers."
