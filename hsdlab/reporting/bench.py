"""The report of a bench as a table, on the terminal and in Markdown."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hsdlab.records.bench import BenchResult, BenchSide, Spread
from hsdlab.records.files import replace_file
from hsdlab.reporting.markdown import markdown_table
from hsdlab.reporting.tables import MISSING, number

FILE = "bench.json"
HEADER = (
    "Average depth",
    "ms per decode step",
    "Tokens/s",
    "Speed-up over FullDepth",
    "Ideal speed-up",
    "% of ideal",
    "% slower than plain generate",
    "Prefill ms",
    "GFLOPs per token",
    "Cache MiB",
)
NOTE = (
    "Medians over the rounds, with quartiles. Ratios are taken within each round, since the machine drifts. "
    "Decode steps only: the prefill ends, for every strategy, where the first decode step enters layer 0. "
    "Ideal speed-up: weights read at full depth, divided by weights read under the schedule, head included. It is "
    "blank where the layers are chosen during the step. A negative % slower is faster."
)


def write_bench(result: BenchResult, folder: Path) -> None:
    """Write bench.json and bench.md, each whole or not at all.

    Args:
        result: The figures of all sides.
        folder: A missing folder is created. Files of an earlier bench are replaced.
    """
    result.write(folder / FILE)
    replace_file(folder / "bench.md", bench_markdown(result))


def print_bench(result: BenchResult, console: Console) -> None:
    """Print the conditions, a line for each side, and how to read them.

    Args:
        result: The figures of all sides.
        console: Of 120 columns or more.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("Strategy", width=16, overflow="fold")
    rows = [[cell.replace(" [", "\n").rstrip("]") for cell in _cells(side)] for side in result.sides]
    for name, column in zip(HEADER, zip(*rows, strict=True), strict=True):
        parts = name.split() + [line for cell in column for line in cell.split("\n")]
        table.add_column(name, justify="right", width=max(map(len, parts)))
    for side, cells in zip(result.sides, rows, strict=True):
        table.add_row(*map(Text, [side.name, *cells]))
    console.print(_conditions(result), highlight=False, markup=False)
    console.print(table)
    console.print(NOTE, style="dim", highlight=False)


def bench_markdown(result: BenchResult) -> str:
    """Render the report as Markdown.

    Args:
        result: The figures of all sides.

    Returns:
        The text of bench.md.
    """
    rows = [[f"`{side.name}`", *_cells(side)] for side in result.sides]
    return f"# Decoding speed\n\n{_conditions(result)}\n\n{markdown_table(['Strategy', *HEADER], rows)}\n\n{NOTE}\n"


def _conditions(result: BenchResult) -> str:
    model, environment = result.model, result.environment
    shortest, longest = min(result.prompt_tokens), max(result.prompt_tokens)
    length = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    conditions = [
        f"{model.name or model.class_name}, {model.num_layers} layers, {model.dtype} on {model.device}",
        f"batch 1, greedy, {len(result.prompt_tokens)} prompts of {length} tokens",
        f"{result.new_tokens} new tokens",
        f"{result.repeats} rounds in alternation after {result.warmup_rounds} of warm-up",
        f"{environment.threads} threads",
    ]
    before, after = environment.load_average_before, environment.load_average_after
    if before and after:
        conditions.append(f"load average {before[0]:.1f} before, {after[0]:.1f} after")
    if result.run is not None:
        conditions.append(result.run.machine.cpu)
    return "; ".join(conditions) + "."


def _cells(side: BenchSide) -> list[str]:
    """One side's cells under ``HEADER``."""
    plain = side.time_over_plain
    over_plain = Spread(*(100 * (ratio - 1) for ratio in (plain.median, plain.low, plain.high)))
    return [
        number(side.average_layers, 2),
        _spread(side.decode_step_ms, 1),
        number(side.tokens_per_second.median, 1),
        _spread(side.speed_up, 2),
        number(side.ideal_speed_up, 2),
        number(side.reached and 100 * side.reached, 1),
        _spread(over_plain, 1),
        _spread(side.prompt_ms, 1),
        MISSING if side.flops_per_token is None else f"{side.flops_per_token / 1e9:.3g}",
        number(side.cache_mib, 2),
    ]


def _spread(figure: Spread, digits: int) -> str:
    """Return "median [low…high]"."""
    return f"{figure.median:.{digits}f} [{figure.low:.{digits}f}…{figure.high:.{digits}f}]"
