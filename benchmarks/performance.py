"""Measure what docs/performance.md shows, and write it there.

    python -m benchmarks.performance                   # all parts, on a machine that does nothing else
    python -m benchmarks.performance steps runs        # some parts: matrix, steps, runs

A part that is not measured stays as it is. The records of the matrix are kept in runs/performance.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import fill

from benchmarks.markers import filled
from benchmarks.update_pages import provenance
from hsdlab.decoding.packed import onednn_takes_bfloat16
from hsdlab.records.bench import FULL_DEPTH, LAYERS_REMOVED, PLAIN, BenchCell, BenchResult, BenchSide, Spread
from hsdlab.records.provenance import run_info
from hsdlab.reporting.bench import FILE
from hsdlab.reporting.bench_figure import bench_figure
from hsdlab.reporting.figures import replace_figure
from hsdlab.reporting.markdown import markdown_table
from hsdlab.reporting.tables import MISSING, number

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "performance.png"
RUNS = ROOT / "runs" / "performance"

MATRIX = (
    {"prompts": 4, "batch_sizes": [1], "beams": [1, 4], "prompt_tokens": [100], "assistant_early_exit": 10},
    {"prompts": 8, "batch_sizes": [8], "beams": [1, 4], "prompt_tokens": [100]},
    {"prompts": 32, "batch_sizes": [32], "beams": [1, 4], "prompt_tokens": [100]},
    {"prompts": 1, "batch_sizes": [1], "beams": [1, 4], "prompt_tokens": [1000]},
)
"""The options of `hsdlab bench` for the cells of the matrix; large batches take fewer batches."""

HEADER = (
    *(
        "Batch",
        "Beams",
        "Prompt",
        "dtype",
        "Decoded by",
        "Depth",
        "ms per step",
        "Speed-up over plain",
        "over FullDepth",
    ),
    *("Ideal", "Limit of skipping ÷ hsdlab", "Prefill ms", "Cache MiB"),
)


def matrix() -> str:
    """Run the bench on each cell; draw the picture, and return one table for all.

    Without instructions for bfloat16 a CPU is many times slower in it, and only float32 is measured.
    """
    found, dtypes = [], ["float32", *(["bfloat16"] if onednn_takes_bfloat16() else [])]
    for place, cells in enumerate(MATRIX):
        folder, options = RUNS / f"matrix_{place}", {**cells, "dtypes": dtypes}
        flags = [f"--{name}={value}" for name, value in options.items()]
        _call("hsdlab.cli", "bench", "--config=experiment/performance", f"--output={folder}", "--overwrite", *flags)
        found.append(BenchResult.read(folder / FILE))
    whole = replace(found[0], cells=tuple(cell for result in found for cell in result.cells))
    replace_figure(PICTURE, bench_figure(whole))
    return matrix_part(whole)


def matrix_part(result: BenchResult) -> str:
    """Return the table of all cells, how to read it, and where it was measured.

    Args:
        result: The figures of all cells.
    """
    rows = [row for cell in result.cells for row in _rows(cell)]
    peak = max(cell.peak_process_mib or 0 for cell in result.cells)
    notes = [
        f"{result.model.name}, {result.new_tokens} new tokens, {result.repeats} rounds in alternation after "
        f"{result.warmup_rounds} of warm-up, {result.environment.threads} threads. Medians, with quartiles in "
        f"brackets. The process took at most {peak:.0f} MiB of main memory.",
        "Plain is transformers' `model.generate`. Its `assistant_early_exit` is timed per token. The ideal speed-up "
        "over FullDepth is the ratio of weights read. The limit of skipping is plain `model.generate` with only the "
        "schedule's layers in the model; a ratio above 1 says that hsdlab's step is faster than that.",
        *([] if result.run is None else [provenance(result.run)]),
    ]
    picture = f"![Speed-up against the share of layers that are executed]({PICTURE.name})"
    return "\n\n".join([markdown_table(HEADER, rows), picture, *(fill(note, 120) for note in notes)])


def _rows(cell: BenchCell) -> list[list[str]]:
    """Return the lines of a cell. The limit of a strategy is a column, and no line of its own."""
    conditions = [str(cell.batch_size), str(cell.num_beams), str(max(cell.prompt_tokens)), cell.dtype]
    return [[*conditions, *_cells(side)] for side in cell.sides if not side.name.startswith(LAYERS_REMOVED)]


def _cells(side: BenchSide) -> list[str]:
    plain = side.time_over_plain
    over_plain = Spread(1 / plain.median, 1 / plain.high, 1 / plain.low)
    name = {PLAIN: "plain", FULL_DEPTH: "FullDepth"}.get(side.name, side.name)
    return [
        f"`{name}`",
        number(side.average_layers, 1),
        f"{side.decode_step_ms.median:.1f}",
        MISSING if side.name == PLAIN else _spread(over_plain),
        MISSING if side.name in (PLAIN, FULL_DEPTH) else _spread(side.speed_up),
        number(side.ideal_speed_up, 2),
        MISSING if side.over_removed is None else _spread(side.over_removed),
        f"{side.prompt_ms.median:.0f}",
        number(side.cache_mib, 1),
    ]


def _spread(figure: Spread) -> str:
    return f"{figure.median:.2f} [{figure.low:.2f}…{figure.high:.2f}]"


def steps() -> str:
    """Measure single decode steps and prefills; return the tables."""
    return f"{_call('benchmarks.step_time')}\n\n{provenance(run_info())}"


def runs() -> str:
    """Measure whole runs; return the tables."""
    parts = [_call("benchmarks.run_time", *case) for case in (("compare", "--rounds=1"), ("evaluate",))]
    return "\n\n".join([*parts, provenance(run_info())])


PARTS: dict[str, Callable[[], str]] = {"matrix": matrix, "steps": steps, "runs": runs}


def _call(module: str, *arguments: str) -> str:
    """Run a module of this checkout in a process of its own; return what it prints."""
    command = [sys.executable, "-m", module, *arguments]
    print(" ".join(command[1:]), flush=True)
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> None:
    """Measure the parts that were asked for, and write each as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all")
    for name in parser.parse_args().parts or PARTS:
        content = PARTS[name]()
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), name, content), encoding="utf-8")
        print(f"{name}: written to {PAGE}", flush=True)


if __name__ == "__main__":
    main()
