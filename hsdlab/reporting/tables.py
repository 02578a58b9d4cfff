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
    """Return a console on which the tables fit: of 120 columns where the output is no terminal, or a narrower one."""
    made = Console(quiet=quiet)
    return made if made.is_terminal and made.width >= WIDTH else Console(width=WIDTH, quiet=quiet)


def terminal_table(title: str, first: str, header: Sequence[str]) -> Table:
    """Return a table for the terminal, without rows: a column of text, then columns of numbers."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, width=24, overflow="fold")
    for name in header:
        table.add_column(name, justify="right", min_width=max(map(len, name.split())))
    return table


def cost_cells(row: ComparisonRow, header: Sequence[str] = COST_HEADER) -> list[str]:
    """Return the cells under some columns of `COST_HEADER`."""
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
    """Say how deep and how fast a strategy is."""
    layers, step, speed_up = cost_cells(row, COSTS_OF_A_CHOICE)
    text = f"{layers} of {row.num_layers} layers on average"
    if row.faster_than_its_layers:
        return f"{text}; times of this run are not to be trusted"
    text += f", {step} ms per decode step"
    return text if row.is_baseline else f"{text}, {speed_up.split()[0]} the speed of full depth"


def time_notes(rows: Sequence[ComparisonRow], baseline: str) -> list[str]:
    """Return what the marks on times mean, as far as they occur."""
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
    """Return a quality as % of the baseline's, with its interval."""
    figure = row.percent_of_baseline[metric]
    return number(figure.value, 1) if row.is_baseline else estimate(figure, 1)


def shown_name(row: ComparisonRow, quote: str = "") -> str:
    """Return a strategy's name, between quotes, marked where it is an oracle."""
    return f"{quote}{row.full_name}{quote}{' (oracle)' if row.is_oracle else ''}"


def estimate(figure: Estimate, digits: int, unit: float = 1) -> str:
    """Return "value [low, high]", or the value alone where there is no interval."""
    ends = interval(figure, digits, unit)
    value = number(unit * figure.value, digits)
    return f"{value} [{ends}]" if ends else value


def interval(figure: Estimate, digits: int, unit: float = 1) -> str:
    """Return "low, high", or nothing where there is no interval."""
    if not all(map(math.isfinite, (figure.value, figure.low, figure.high))):
        return ""
    return f"{unit * figure.low:.{digits}f}, {unit * figure.high:.{digits}f}"


def number(value: float | None, digits: int) -> str:
    """Return a number with so many digits after the point."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def significant(value: float) -> str:
    """Return three significant digits, never an exponent."""
    if not math.isfinite(value):
        return MISSING
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def baseline_note(comparison: Comparison) -> str:
    """Say what the others are compared with, and on how many examples."""
    baseline = comparison.baseline
    named = f"{baseline.full_name} is the baseline (100 %)"
    if not comparison.has_full_depth:
        named = f"FullDepth was not run: the first strategy, {named}"
    return f"{named}. {baseline.examples} examples, {baseline.num_layers} layers."
