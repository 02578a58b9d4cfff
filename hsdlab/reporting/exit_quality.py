"""How good an exit classifier is, layer by layer: a table, JSON and a picture."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hsdlab.records.files import plain, replace_figure, replace_file
from hsdlab.reporting.pareto import COLOURS, FAINT, INK

COLUMNS = {
    "agreement": "Layer's prediction is the last one's",
    "f1": "F1 at 0.5",
    "auroc": "AUROC",
    "calibration_error": "Calibration error",
}


def write_exit_quality(quality: Mapping[str, Tensor], folder: Path, run: Mapping[str, Any]) -> None:
    """Write exit_classifier.json and exit_classifier.png.

    Args:
        quality: Of ExitClassifierModule: agreement, f1, auroc and calibration_error [layers], and the reliability
            diagram, confidence, rate and count [layers, bins].
        folder: Where to write.
        run: Provenance, as `run_provenance` gives it.
    """
    layers = {name: quality[name].tolist() for name in COLUMNS}
    document = plain({"schema_version": 1, "run": run, "layers": layers})
    replace_file(
        folder / "exit_classifier.json", json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"
    )
    replace_figure(folder / "exit_classifier.png", exit_quality_figure(quality))


def print_exit_quality(quality: Mapping[str, Tensor], console: Console) -> None:
    """Print a line for each layer."""
    table = Table(title="Exit classifier on the validation split", title_justify="left", box=SIMPLE_HEAD)
    for name in ("Layer", *COLUMNS.values()):
        table.add_column(name, justify="right")
    for layer, values in enumerate(zip(*(quality[name].tolist() for name in COLUMNS), strict=True)):
        table.add_row(str(layer), *("–" if math.isnan(value) else f"{value:.3f}" for value in values))
    console.print(table)


def exit_quality_figure(quality: Mapping[str, Tensor]) -> Figure:
    """Draw the figures of each layer (left), and the reliability diagram over all layers (right)."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for (name, label), colour, line in zip(COLUMNS.items(), COLOURS, ("-", "--", "-.", ":"), strict=False):
        left.plot(quality[name].tolist(), color=colour, linestyle=line, label=label)
    left.set_xlabel("Layer", color=INK)
    left.set_ylim(0, 1.02)
    left.legend(frameon=False, labelcolor=INK)
    count = quality["count"]
    cases = count.sum(dim=0)  # (bins)
    confidence, rate = ((quality[name].nan_to_num(0.0) * count).sum(dim=0) / cases for name in ("confidence", "rate"))
    right.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1, label="Calibrated")
    right.plot(confidence.tolist(), rate.tolist(), color=COLOURS[1], marker="o", label="All layers")
    right.set_xlabel("Confidence of the classifier", color=INK)
    right.set_ylabel("How often the prediction is the last layer's", color=INK)
    right.legend(frameon=False, labelcolor=INK)
    for axes in (left, right):
        axes.grid(color="#ececec", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
