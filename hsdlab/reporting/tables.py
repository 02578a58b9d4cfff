"""What every table shares: cells of figures, the columns of cost, tables for the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hsdlab.records.bootstrap import Estimate
from hsdlab.records.comparison import Comparison, ComparisonRow
from hsdlab.records.labels import METRIC_LABELS

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
FEW_EXAMPLES = 30
"""With fewer, a note says that the intervals are wide."""
SLOW, TOO_FAST = "†", "‡"
MARKS_IN_WORDS = {SLOW: "slower than full depth", TOO_FAST: "faster than its layers allow"}
"""The marks of times, as legends explain them."""
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


def widen_for_intervals(table: Table) -> None:
    """Widen the column of the speed-up for the interval below it.

    Args:
        table: For the terminal, changed in place.
    """
    for column in table.columns:
        if column.header == "Measured speed-up":
            column.min_width = len("1.41–1.51")


def interval_below(cell: str) -> str:
    """Put the interval of a cell on a line of its own, in which a narrow column finds no break.

    Args:
        cell: A figure, with its interval or without one.

    Returns:
        "1.46×", a line break and "1.41–1.51"; a cell without an interval as it is.
    """
    value, bracket, ends = cell.partition(" [")
    return f"{value}\n{ends.rstrip(']').replace(', ', '–')}" if bracket else cell


def time_mark(row: ComparisonRow) -> str:
    """Choose the mark of a time that needs an explanation, the same in tables and pictures.

    Args:
        row: The strategy.

    Returns:
        `SLOW`, `TOO_FAST` or nothing. `time_notes` explains them.
    """
    return SLOW if row.saves_layers_but_no_time else TOO_FAST if row.faster_than_its_layers else ""


def cost_cells(row: ComparisonRow, header: Sequence[str] = COST_HEADER) -> list[str]:
    """Format the cells of a strategy under some columns of cost.

    Args:
        row: The strategy. A figure that was not measured is written as `MISSING`.
        header: Names from `COST_HEADER`.

    Returns:
        One cell for each name. The speed-up has its interval, and a mark where time and layers disagree (`time_notes`).
    """
    cells = {
        "Average depth": number(row.average_layers, 2),
        "% of layers": number(row.percent_of_layers, 1),
        "Computed layers": number(row.figure("compute_layers"), 2),
        "Measured speed-up": _speed_up(row),
        "ms per decode step": significant(row.figure("decode_step_ms")),
        "Tokens/s": significant(row.figure("tokens_per_second")),
        "Prefill ms": significant(row.figure("prompt_ms")),
        "GFLOPs per token": significant(row.figure("flops_per_token") / 1e9),
        "MB read per token": significant(row.figure("bytes_per_token") / 1e6),
        "Cache peak MiB": significant(row.figure("cache_peak_mib")),
    }
    return [cells[name] for name in header]


def _speed_up(row: ComparisonRow) -> str:
    if not math.isfinite(row.speed_up):
        return MISSING
    ends = "" if row.speed_up_interval is None else "[{:.2f}, {:.2f}]".format(*row.speed_up_interval)
    return " ".join(filter(None, (f"{row.speed_up:.2f}×", time_mark(row), ends)))


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
    slow = [row for row in rows if time_mark(row) == SLOW]
    if slow:
        text = f"{SLOW} Layers were saved, but a decode step took longer than {baseline}'s."
        if drafted := [row.label for row in slow if row.verifies]:
            text += f" Too few drafted tokens were accepted: {', '.join(drafted)}."
        if reading := [row.label for row in slow if row.figure("intermediate_predictions_per_token") > 0]:
            text += " Confidence measures read the head or a part of it after every layer that they check: "
            text += f"{', '.join(reading)}."
        if len(reading) + len(drafted) < len(slow):
            text += " If a schedule is slow, the machine may have done other work: `bench` measures it again."
        notes.append(text)
    if any(time_mark(row) == TOO_FAST for row in rows):
        notes.append(
            f"{TOO_FAST} More than the layers allow: the machine may have done other work while one of the two was "
            "measured. Do not trust it. `bench` times the strategies in alternation."
        )
    return notes


def arguments_note(rows: Sequence[ComparisonRow]) -> list[str]:
    """Name the arguments that the labels give without keywords.

    Args:
        rows: Rows of the table.

    Returns:
        One note; none where no strategy has arguments. A strategy that holds others is left out.
    """
    found: dict[str, list[str]] = {}
    for name, row in ((row.resolved or row.name, row) for row in rows):
        keywords = re.findall(r"(\w+)=", name) if name.count("(") == 1 else []
        found[row.class_name] = max(found.get(row.class_name, []), keywords, key=len)
    named = ", ".join(f"{name}({', '.join(keywords)})" for name, keywords in found.items() if keywords)
    return [f"Arguments: {named}."] if named else []


def quality_notes(comparison: Comparison) -> list[str]:
    """Warn of few examples, and of a model that skipping ruins.

    Args:
        comparison: Of one strategy or more.

    Returns:
        No, one or two notes.
    """
    notes, metric, examples = [], comparison.headline_metric, comparison.baseline.examples
    if examples < FEW_EXAMPLES:
        notes.append(f"Only {examples} examples: the intervals are wide.")
    ruined = [row for row in comparison.rows if metric in row.quality and row.percent_of_baseline[metric].value < 50]
    if ruined:
        runs = ", ".join(dict.fromkeys(row.run for row in ruined if row.run))
        where = f" ({runs})" if runs else ""
        notes.append(
            f"{METRIC_LABELS[metric]} falls below half of the baseline's{where}: as a rule, this model was not trained "
            "to skip layers. See docs/training.md."
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
    return f"{quote}{row.label}{quote}{' (oracle)' if row.is_oracle else ''}"


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
        The baseline, the number of examples and the number of layers. One strategy alone is compared with nothing.
    """
    baseline = comparison.baseline
    size = f"{baseline.examples} examples, {baseline.num_layers} layers."
    if len(comparison.rows) == 1:
        return size if comparison.has_full_depth else f"{size} `compare` also runs FullDepth, the baseline."
    named = f"{baseline.label} is the baseline (100 %)"
    if not comparison.has_full_depth:
        named = f"FullDepth was not run: the first strategy, {named}"
    return f"{named}. {size}"
