"""How good an exit classifier or router is, layer by layer: a table, JSON and a picture."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hsdlab.records.exit_quality import ExitQuality
from hsdlab.reporting.calibration_curve import plain_axes, prepare_calibration
from hsdlab.reporting.figures import Picture, replace_figure
from hsdlab.reporting.pareto import COLOURS, INK
from hsdlab.reporting.tables import number

NAMES = {"exit classifier": "exit_classifier", "exit router": "exit_router"}
"""What is judged, and the name of its files."""
FILES = tuple(f"{name}.json" for name in NAMES.values())
COLUMNS = {
    "agreement": "Layer's prediction is the last one's",
    "f1": "F1 at 0.5",
    "auroc": "AUROC",
    "calibration_error": "Calibration error",
}


def write_exit_quality(quality: ExitQuality, folder: Path) -> Picture:
    """Write exit_classifier.json and exit_classifier.png (or exit_router), each whole or not at all.

    Args:
        quality: Figures of each layer.
        folder: A missing folder is created. Earlier files are replaced.

    Returns:
        The picture, for TensorBoard.
    """
    name = NAMES[quality.network]
    quality.write(folder / f"{name}.json")
    return replace_figure(folder / f"{name}.png", exit_quality_figure(quality))


def print_exit_quality(quality: ExitQuality, console: Console) -> None:
    """Print a line for each layer.

    Args:
        quality: Figures of each layer.
        console: Where to print.
    """
    table = Table(
        title=f"{quality.network.capitalize()} on the validation split", title_justify="left", box=SIMPLE_HEAD
    )
    for name in ("Layer", *COLUMNS.values()):
        table.add_column(name, justify="right")
    for layer, *values in zip(_layers(quality), *(getattr(quality, name) for name in COLUMNS), strict=True):
        table.add_row(str(layer), *(number(value, 3) for value in values))
    console.print(table)


def exit_quality_figure(quality: ExitQuality) -> Figure:
    """Draw the figures of each layer (left), and the reliability diagram over all layers (right).

    Args:
        quality: Figures of each layer.

    Returns:
        A figure of 10 by 4 inches on the Agg canvas, apart from pyplot's global state.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for (name, label), colour, line in zip(COLUMNS.items(), COLOURS, ("-", "--", "-.", ":"), strict=False):
        left.plot(_layers(quality), getattr(quality, name), color=colour, linestyle=line, label=label)
    left.set_xlabel("Layer", color=INK)
    left.set_ylim(0, 1.02)
    left.legend(frameon=False, labelcolor=INK)
    count = np.array(quality.count)  # (layers, bins)
    with np.errstate(invalid="ignore"):  # a bin without cases has no mean
        confidence, rate = (
            (np.nan_to_num(np.array(values)) * count).sum(axis=0) / count.sum(axis=0)
            for values in (quality.confidence, quality.rate)
        )
    prepare_calibration(right, f"Confidence of the {quality.network.removeprefix('exit ')}")
    right.plot(confidence, rate, color=COLOURS[1], marker="o", label="All layers")
    right.legend(frameon=False, labelcolor=INK)
    plain_axes(left)
    return figure


def _layers(quality: ExitQuality) -> tuple[int, ...]:
    return quality.layers or tuple(range(len(quality.agreement)))
