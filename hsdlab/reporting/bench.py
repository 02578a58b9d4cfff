"""The report of a bench: a table for each cell, on the terminal and in Markdown."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hsdlab.records.bench import EARLY_EXIT, LAYERS_REMOVED, BenchCell, BenchResult, BenchSide, Spread
from hsdlab.records.files import replace_file
from hsdlab.reporting.bench_figure import bench_figure, cell_title
from hsdlab.reporting.figures import replace_figure
from hsdlab.reporting.markdown import markdown_table
from hsdlab.reporting.tables import MISSING, number

FILE = "bench.json"
PICTURE = "bench.png"
OF_REMOVED = "% of the speed with layers removed"
GPU_MEMORY = "Peak GPU MiB"
FLOPS = "GFLOPs per token"
HEADER = (
    "Average depth",
    "ms per decode step",
    "Tokens/s",
    "Speed-up over FullDepth",
    "Ideal speed-up",
    "% of ideal",
    OF_REMOVED,
    "% slower than plain generate",
    "Prefill ms",
    FLOPS,
    "Cache MiB",
    GPU_MEMORY,
)
NOTE = (
    "Medians over the rounds, with quartiles. Ratios are taken within each round, since the machine drifts. "
    "Decode steps only: the prefill ends, for every strategy, where the first decode step enters layer 0. "
    "Ideal speed-up: weights read at full depth, divided by weights read under the schedule, head included. It is "
    "blank where the layers are chosen during the step. A negative % slower is faster."
)
REMOVED_NOTE = (
    "Layers removed: plain generate with only the schedule's layers in the model, the limit of skipping with "
    "transformers' own steps. hsdlab's steps may be faster. Its text means nothing."
)
EARLY_EXIT_NOTE = (
    "assistant_early_exit: transformers' self-speculation, whose text is full depth's. Its prefill is the first draft "
    "with its verification, and its decode steps are counted in tokens."
)


def write_bench(result: BenchResult, folder: Path) -> None:
    """Write bench.json, bench.md and bench.png, each whole or not at all.

    Args:
        result: The figures of all cells.
        folder: A missing folder is created. Files of an earlier bench are replaced.
    """
    result.write(folder / FILE)
    replace_file(folder / "bench.md", bench_markdown(result))
    replace_figure(folder / PICTURE, bench_figure(result))


def print_bench(result: BenchResult, console: Console) -> None:
    """Print the conditions, a table for each cell, and how to read them.

    Args:
        result: The figures of all cells.
        console: Of 120 columns or more.
    """
    console.print(_conditions(result), highlight=False, markup=False)
    for cell in result.cells:
        if len(result.cells) > 1:
            console.print(f"\n{cell_title(cell)}.", style="bold", highlight=False, markup=False)
        header = [name for name in _header(cell) if name != FLOPS or OF_REMOVED not in _header(cell)]  # 120 columns
        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column("Strategy", width=16, overflow="fold")
        rows = [[each.replace(" [", "\n").rstrip("]") for each in _cells(side, header)] for side in cell.sides]
        for name, column in zip(header, zip(*rows, strict=True), strict=True):
            parts = name.split() + [line for text in column for line in text.split("\n")]
            table.add_column(name, justify="right", width=max(map(len, parts)))
        for side, cells in zip(cell.sides, rows, strict=True):
            table.add_row(*map(Text, [side.name, *cells]))
        console.print(table)
        for line in _cell_notes(cell):
            console.print(line, highlight=False, markup=False)
    for note in _notes(result):
        console.print(note, style="dim", highlight=False)


def bench_markdown(result: BenchResult) -> str:
    """Render the report as Markdown.

    Args:
        result: The figures of all cells.

    Returns:
        The text of bench.md.
    """
    blocks = ["# Decoding speed", _conditions(result)]
    for cell in result.cells:
        header = _header(cell)
        if len(result.cells) > 1:
            blocks.append(f"**{cell_title(cell)}**")
        rows = [[f"`{side.name}`", *_cells(side, header)] for side in cell.sides]
        blocks.append(markdown_table(["Strategy", *header], rows))
        blocks += _cell_notes(cell)
    blocks += [f"![Speed-up against the share of layers that are executed]({PICTURE})", " ".join(_notes(result))]
    return "\n\n".join(blocks) + "\n"


def _header(cell: BenchCell) -> list[str]:
    """Return the columns of which some side has a figure; columns of today's plain bench always."""
    absent = {
        OF_REMOVED: all(side.over_removed is None for side in cell.sides),
        GPU_MEMORY: all(side.peak_gpu_mib is None for side in cell.sides),
    }
    return [name for name in HEADER if not absent.get(name)]


def _conditions(result: BenchResult) -> str:
    model, environment = result.model, result.environment
    where = f"on {model.device}"
    conditions = [
        f"{model.name or model.class_name}, {model.num_layers} layers, "
        + (f"{result.cells[0].dtype} {where}" if len(result.cells) == 1 else where),
        *([cell_title(result.cells[0], dtype=False)] if len(result.cells) == 1 else []),
        f"{result.new_tokens} new tokens",
        f"{result.repeats} rounds in alternation after {result.warmup_rounds} of warm-up",
        f"{environment.threads} threads",
    ]
    before, after = environment.load_average_before, environment.load_average_after
    if before and after:
        conditions.append(f"load average {before[0]:.1f} before, {after[0]:.1f} after")
    if result.run is not None:
        conditions.append(result.run.machine.cpu)
        conditions += dict.fromkeys(result.run.machine.gpus if model.device.startswith("cuda") else ())
    if len(result.cells) < result.planned_cells:
        conditions.append(f"cut short after {len(result.cells)} of {result.planned_cells} cells")
    return "; ".join(conditions) + "."


def _cell_notes(cell: BenchCell) -> list[str]:
    """Return what is to be said under a cell's table."""
    notes = [f"Not measured: {each.name}, since {each.reason}." for each in cell.not_measured]
    if cell.other_tokens:
        of_all = f"{cell.other_tokens} of {len(cell.prompt_tokens) // cell.batch_size}"
        notes.append(f"By rounding, FullDepth made other tokens than plain generate on {of_all} batches.")
    if cell.peak_process_mib is not None:
        notes.append(f"The process had taken at most {cell.peak_process_mib:.0f} MiB of main memory by then.")
    return notes


def _notes(result: BenchResult) -> list[str]:
    """Return how to read the tables."""
    names = [side.name for cell in result.cells for side in cell.sides]
    notes = [NOTE]
    if any(name.startswith(LAYERS_REMOVED) for name in names):
        notes.append(REMOVED_NOTE)
    if any(name.startswith(EARLY_EXIT) for name in names):
        notes.append(EARLY_EXIT_NOTE)
    return notes


def _cells(side: BenchSide, header: Sequence[str]) -> list[str]:
    """Return one side's cells under some columns of ``HEADER``."""
    plain = side.time_over_plain
    cells = {
        "Average depth": number(side.average_layers, 2),
        "ms per decode step": _spread(side.decode_step_ms, 1),
        "Tokens/s": number(side.tokens_per_second.median, 1),
        "Speed-up over FullDepth": _spread(side.speed_up, 2),
        "Ideal speed-up": number(side.ideal_speed_up, 2),
        "% of ideal": number(side.reached and 100 * side.reached, 1),
        OF_REMOVED: MISSING if side.over_removed is None else _spread(_percent(side.over_removed), 1),
        "% slower than plain generate": _spread(_percent(plain, less=1), 1),
        "Prefill ms": _spread(side.prompt_ms, 1),
        FLOPS: MISSING if side.flops_per_token is None else f"{side.flops_per_token / 1e9:.3g}",
        "Cache MiB": number(side.cache_mib, 2),
        GPU_MEMORY: number(side.peak_gpu_mib, 0),
    }
    return [cells[name] for name in header]


def _percent(ratio: Spread, less: float = 0) -> Spread:
    return Spread(*(100 * (each - less) for each in (ratio.median, ratio.low, ratio.high)))


def _spread(figure: Spread, digits: int) -> str:
    """Return "median [low…high]"."""
    return f"{figure.median:.{digits}f} [{figure.low:.{digits}f}…{figure.high:.{digits}f}]"
