"""The report of a bench as a table, on the terminal and in Markdown."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

HEADER = (
    "Avg. layers",
    "ms per decode step",
    "Tokens/s",
    "Speed-up over FullDepth",
    "Ideal speed-up",
    "Reached %",
    "Time over plain %",
    "Prompt ms",
    "GFLOPs per token",
    "Cache MiB",
)
NOTE = (
    "Medians over the rounds, with quartiles; ratios are taken within each round, since the machine drifts. "
    "Decode steps only: the prompt pass ends, on every side, where the first decode step enters layer 0. "
    "Ideal: weights read at full depth over weights read under the schedule, head included; blank where the "
    "layers are chosen during the step."
)
MISSING = "–"
WIDTH = 120  # characters that the table needs; more than rich assumes where the output is a file


def print_table(report: dict[str, Any]) -> None:
    """Print the report of :func:`~hsdlab.runs.bench.run_bench` on the terminal."""
    console = Console()
    console.width = max(console.width, WIDTH)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("Side", width=16, overflow="fold")
    rows = [[cell.replace(" [", "\n").rstrip("]") for cell in _cells(side)] for side in report["sides"]]
    for name, column in zip(HEADER, zip(*rows, strict=True), strict=True):
        parts = name.split() + [line for cell in column for line in cell.split("\n")]
        table.add_column(name, justify="right", width=max(map(len, parts)))
    for side, cells in zip(report["sides"], rows, strict=True):
        table.add_row(*map(Text, [side["name"], *cells]))
    console.print(_conditions(report), highlight=False, markup=False)
    console.print(table)
    console.print(NOTE, style="dim", highlight=False)


def markdown(report: dict[str, Any]) -> str:
    """Return the report of :func:`~hsdlab.runs.bench.run_bench` in Markdown."""
    lines = [["Side", *HEADER], ["---", *("---:" for _ in HEADER)]]
    lines += [[f"`{side['name']}`", *_cells(side)] for side in report["sides"]]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# Decoding speed\n\n{_conditions(report)}\n\n{table}\n\n{NOTE}\n"


def _conditions(report: dict[str, Any]) -> str:
    model, environment = report["model"], report["environment"]
    shortest, longest = min(report["prompt_tokens"]), max(report["prompt_tokens"])
    length = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    name = model["name"] or model["class"]
    conditions = [
        f"{name}, {model['num_layers']} layers, {model['dtype']} on {model['device']}",
        f"batch 1, greedy, {len(report['prompt_tokens'])} prompts of {length} tokens",
        f"{report['new_tokens']} new tokens",
        f"{report['repeats']} interleaved rounds after {report['warmup_rounds']} of warm-up",
        f"{environment['threads']} threads",
    ]
    before, after = environment["load_average_before"], environment["load_average_after"]
    if before and after:
        conditions.append(f"load average {before[0]:.1f} before, {after[0]:.1f} after")
    if report["run"] and "machine" in report["run"]:
        conditions.append(report["run"]["machine"]["cpu"])
    return "; ".join(conditions) + "."


def _cells(side: dict[str, Any]) -> list[str]:
    """One side's cells under ``HEADER``."""
    over_plain = {name: 100 * (ratio - 1) for name, ratio in side["time_over_plain"].items()}
    return [
        _number(side["average_layers"], 2),
        _spread(side["decode_step_ms"], 1),
        _number(side["tokens_per_second"]["median"], 1),
        _spread(side["speed_up"], 2),
        _number(side["ideal_speed_up"], 2),
        _number(side["reached"] and 100 * side["reached"], 1),
        _spread(over_plain, 1),
        _spread(side["prompt_ms"], 1),
        MISSING if side["flops_per_token"] is None else f"{side['flops_per_token'] / 1e9:.3g}",
        _number(side["cache_mib"], 2),
    ]


def _number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _spread(figure: dict[str, float], digits: int) -> str:
    """Return "median [low…high]"."""
    return f"{figure['median']:.{digits}f} [{figure['low']:.{digits}f}…{figure['high']:.{digits}f}]"
