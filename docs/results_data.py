"""What docs/results holds: how it gets there out of runs/results, its rows, its times, and the paper's own rows."""

import csv
import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hsdlab.records.run_folder import write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
RUNS = ROOT / "runs/results"
SETS = {"e2e": "E2E", "common_gen": "CommonGen"}


class Cell(NamedTuple):
    """A strategy on a model: one row of `evaluate.py compare`."""

    name: str
    figures: dict[str, Any]

    @property
    def layers(self) -> float:
        """Average layers of a decode step."""
        return number(self.figures["cost"].get("average_layers"))

    @property
    def percent_of_layers(self) -> float:
        """The same as percentage of the model's."""
        return 100 * self.layers / self.figures["num_layers"]

    def quality(self, metric: str) -> float:
        """A corpus figure from 0 to 1."""
        return number(self.figures["quality"].get(metric, {}).get("value"))

    def share(self, metric: str) -> float:
        """The figure as percentage of the same model's full depth."""
        return number(self.figures["percent_of_baseline"].get(metric, {}).get("value"))


def number(value: float | None) -> float:
    """Return a figure out of JSON, where null stands for not a number."""
    return math.nan if value is None else float(value)


def short(name: str) -> str:
    """Return a strategy's name without its keywords: "HSD(1, 0, 18)"."""
    return re.sub(r", warmup=1\b|\w+=|'", "", name)


def collect() -> None:
    """Take over the results of finished and unfinished runs; rows of one comparison may come from several runs."""
    for run in sorted(RUNS.glob("*")):
        for whole in ("bench.json", "tuning.json"):
            if (run / whole).is_file():
                shutil.copyfile(run / whole, RESULTS / f"{run.name}.json")
        if (run / "comparison.json").is_file():
            new = json.loads((run / "comparison.json").read_text(encoding="utf-8"))
            write_json(RESULTS / f"{run.name}.json", merged(read(run.name), new))


def merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Return a comparison with the rows of an older one that it does not hold, if these are of the same cells.

    Args:
        old: What docs/results holds, if it does.
        new: Of a run. Each row is told by which commit and when it was made, under "measured".
    """
    rows = {row["name"]: row | {"measured": measured_by(new["run"])} for row in new["strategies"]}
    if old is not None and _what(old) == _what(new):
        rows = {row["name"]: {"measured": measured_by(old["run"])} | row for row in old["strategies"]} | rows
    return new | {"strategies": list(rows.values())}


def _what(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Name what rows have to have in common to stand in one table."""
    run = comparison["run"]
    return {name: run[name] for name in ("weights", "examples")} | {"model": run["config"]["model"]}


def measured_by(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return when and by which commit a run was made."""
    git = run.get("git") or {}
    return {"date_utc": run["date_utc"], "commit": git.get("commit"), "dirty": git.get("dirty")}


def read(name: str) -> dict[str, Any] | None:
    """Return the content of docs/results/name.json, None where it is not there."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def cells(name: str) -> dict[str, Cell]:
    """Return the rows of a comparison by their short names, the paper's first; none where it was not run."""
    found = [Cell(short(each["name"]), each) for each in (read(name) or {"strategies": []})["strategies"]]
    order = list(published(next(data for data in SETS if name.startswith(data))))
    return {cell.name: cell for cell in sorted(found, key=lambda cell: (*order, cell.name).index(cell.name))}


def times(data: str, model: str = "skip_aware") -> dict[str, dict[str, Any]]:
    """Return the sides of a set's bench by their short names.

    The model that was trained to skip ran it. A schedule takes another model as long, but CALM leaves that one after
    other layers: it has no time there.
    """
    sides = {short(side["name"]): side for side in (read(f"{data}_bench") or {"sides": []})["sides"]}
    if "FullDepth" in sides:  # which bench always runs
        sides["FullDepth()"] = sides["FullDepth"]
    return {name: side for name, side in sides.items() if model == "skip_aware" or not name.startswith("CALM")}


def published(data: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return the paper's rows: strategy -> model -> figures as percentages of its full model."""
    with (RESULTS / "published.csv").open(encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["dataset"].startswith(data)]
    full = {line["model"]: line for line in lines if line["strategy"] == "FullDepth"}
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for line in lines:
        settings = line["hyperparameters"].replace(" ", ", ").replace("lambda=", "depth, ")
        figures = {
            metric: 100 * float(line[metric]) / float(full[line["model"]][metric])
            for metric in ("rougeL", "bleu1", "bertscore")
        }
        figures["layers"] = 100 * float(line["avg_layers"]) / float(line["num_layers"])
        rows.setdefault(short(f"{line['strategy']}({settings})"), {})[line["model"]] = figures
    return rows
