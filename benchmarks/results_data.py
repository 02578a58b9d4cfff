"""What docs/results holds: how it gets there out of runs/results, its rows, its times, and the paper's own rows."""

import csv
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hsdlab.records.bench import BenchCell, BenchResult, BenchSide
from hsdlab.records.comparison import Comparison, ComparisonRow, Measured
from hsdlab.records.document import Document
from hsdlab.records.provenance import RunInfo
from hsdlab.records.tuning import TuningResult
from hsdlab.reporting import bench, comparison, tuning

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
RUNS = ROOT / "runs/results"
ADAPTERS = ROOT / "adapters/hsdlab_adapters"
"""The companion distribution: a folder for each adapter, such as e2e_skip_aware."""
SETS = {"e2e": "E2E", "common_gen": "CommonGen"}
KINDS: dict[str, type[Document]] = {
    "plain_*": Comparison,
    "skip_aware_*": Comparison,
    "bench": BenchResult,
    "tune": TuningResult,
}
"""The files of docs/results.md: what one holds, by the end of its name."""
Record = TypeVar("Record", bound=Document)


def short(name: str) -> str:
    """Return a strategy's name without its keywords: "HSD(1, 0, 18)"."""
    return re.sub(r", warmup=1\b|\w+=|'", "", name)


def collect() -> None:
    """Take over the results of finished and unfinished runs; rows of one comparison may come from several runs."""
    for run in sorted(RUNS.glob("*")):
        for whole in (bench.FILE, tuning.FILE):
            if (run / whole).is_file():
                shutil.copyfile(run / whole, RESULTS / f"{run.name}.json")
        if (run / comparison.FILE).is_file():
            new = Comparison.read(run / comparison.FILE)
            merged(read(run.name, Comparison), new).write(RESULTS / f"{run.name}.json")


def merged(old: Comparison | None, new: Comparison) -> Comparison:
    """Return a comparison with the rows of an older one that it lacks, if both decoded the same examples alike.

    Args:
        old: What docs/results holds, None where it holds nothing.
        new: Of a run.

    Returns:
        The comparison of the run. Each row says in `measured` by which commit and when it was made.
    """
    rows = {row.name: row for row in _dated(new)}
    if old is not None and _what(old.run) == _what(new.run):
        rows = {row.name: row for row in _dated(old)} | rows
    numbered = (replace(row, number=number) for number, row in enumerate(rows.values(), start=1))
    return replace(new, rows=tuple(numbered))


def _dated(made: Comparison) -> list[ComparisonRow]:
    return [replace(row, measured=row.measured or Measured.by(made.run)) for row in made.rows]


def _what(run: RunInfo) -> tuple[Any, ...]:
    """Name what rows have to have in common to stand in one table."""
    return run.weights, run.examples, run.config["model"]


def read(name: str, kind: type[Record]) -> Record | None:
    """Return the record in docs/results/name.json, None where there is no such file."""
    file = RESULTS / f"{name}.json"
    return kind.read(file) if file.is_file() else None


def rows(name: str) -> dict[str, ComparisonRow]:
    """Return the rows of a comparison by their short names, the paper's first; none where it was not run."""
    made = read(name, Comparison)
    found = {} if made is None else {short(row.name): row for row in made.rows}
    order = [*published(next(data for data in SETS if name.startswith(data))), *found]
    return {each: found[each] for each in sorted(found, key=order.index)}


def times(data: str, model: str = "skip_aware") -> dict[str, BenchSide]:
    """Return the sides of a set's bench by their short names.

    The model that was trained to skip ran it. A schedule takes another model as long, but CALM leaves that one after
    other layers: it has no time there.
    """
    made = read(f"{data}_bench", BenchResult)
    sides = {} if made is None else {name: side for cell in made.cells for name, side in sides_of(cell).items()}
    return {name: side for name, side in sides.items() if model == "skip_aware" or not name.startswith("CALM")}


def sides_of(cell: BenchCell) -> dict[str, BenchSide]:
    """Return the sides of one cell of a bench by their short names; "FullDepth()" is the one that bench always runs."""
    sides = {short(side.name): side for side in cell.sides}
    if "FullDepth" in sides:
        sides["FullDepth()"] = sides["FullDepth"]
    return sides


def runs(data: str, kinds: Mapping[str, type[Document]] = KINDS) -> dict[str, tuple[RunInfo, set[Measured]]]:
    """Return, for each file of a set, its run, and when and by which commits its rows were made.

    Args:
        data: Name of the set.
        kinds: What each file holds, by a pattern of its name after the set's. By default those of docs/results.md.
    """
    files = {file: kind for end, kind in kinds.items() for file in RESULTS.glob(f"{data}_{end}.json")}
    found = {}
    for file in sorted(files):
        record: Any = files[file].read(file)
        made = record.rows if isinstance(record, Comparison) else ()
        measured = {row.measured or Measured.by(record.run) for row in made}
        found[file.name] = record.run, measured or {Measured.by(record.run)}
    return found


def published(data: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return the paper's rows: strategy -> model -> figures as percentages of its full model."""
    with (RESULTS / "published.csv").open(encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["dataset"].startswith(data)]
    full = {line["model"]: line for line in lines if line["strategy"] == "FullDepth"}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for line in lines:
        settings = line["hyperparameters"].replace(" ", ", ").replace("lambda=", "depth, ")
        figures = {
            metric: 100 * float(line[metric]) / float(full[line["model"]][metric])
            for metric in ("rougeL", "bleu1", "bertscore")
        }
        figures["layers"] = 100 * float(line["avg_layers"]) / float(line["num_layers"])
        found.setdefault(short(f"{line['strategy']}({settings})"), {})[line["model"]] = figures
    return found
