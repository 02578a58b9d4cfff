"""An inspection for people: what each layer is worth, as a sentence, a table and a picture."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hsdlab.records.bootstrap import LEVEL
from hsdlab.records.files import replace_file
from hsdlab.records.inspection import InspectedLayer, InspectionResult
from hsdlab.reporting.figures import replace_figure
from hsdlab.reporting.inspection_figure import CHEAPEST, inspection_figure
from hsdlab.reporting.markdown import markdown_table
from hsdlab.reporting.tables import estimate

FILE = "inspect.json"
HEADER = (
    "Layer",
    "Predicts the final token %",
    "So do all later layers %",
    "Softmax response",
    "Cosine with its input",
    "Loss if dropped, nats per token",
    "Same token if dropped %",
)
NOTES = (
    f"Means over the decode steps, with the prompt at full depth. In brackets: the {LEVEL:.0%} bootstrap interval over "
    "the examples.",
    "A layer's prediction: the final norm and the head on its output. The oracle exits at the first layer that "
    "predicts the last layer's token. On these states, no exit that keeps every token runs fewer layers. A real exit "
    "has to guess which layer that is.",
    "Dropped: the decode steps skip that one layer. The losses of several layers do not add up.",
)


def write_inspection(result: InspectionResult, folder: Path) -> None:
    """Write inspect.json, inspect.md and inspect.png, each whole or not at all.

    Args:
        result: The figures of all layers.
        folder: A missing folder is created. Files of an earlier inspection are replaced.
    """
    result.write(folder / FILE)
    replace_figure(folder / "inspect.png", inspection_figure(result))
    replace_file(folder / "inspect.md", inspection_markdown(result))


def summary(result: InspectionResult) -> str:
    """Say what the figures show.

    Args:
        result: The figures of all layers.

    Returns:
        Four sentences, on the oracle exit, the layers that cost least to drop, and the one that costs most.
    """
    layers, order = result.layers, result.cheapest_first
    cheapest, dearest = layers[order[0]], layers[order[-1]]
    others = ", ".join(str(layer) for layer in order[1:CHEAPEST])
    return (
        f"An oracle exit would run {estimate(result.oracle_layers, 1)} of {len(layers)} layers. The prediction no "
        f"longer changes after {estimate(result.saturated_layers, 1)}. Dropping layer {cheapest.layer} "
        f"costs least ({cheapest.dropped_loss.value:+.3f} nats per token, "
        f"{cheapest.dropped_agreement.value:.1%} of the predictions unchanged)"
        + (f", then {others}" if others else "")
        + f". Dropping layer {dearest.layer} costs most ({dearest.dropped_loss.value:+.3f})."
    )


def conditions(result: InspectionResult) -> str:
    """Say what was measured on.

    Args:
        result: The figures of all layers.

    Returns:
        Model, text, numbers of examples and decode steps, and the loss at full depth, in one line.
    """
    model = result.model
    return (
        f"{model.name or model.class_name}, {model.num_layers} layers, {model.dtype} on {model.device}; "
        f"{result.text}; {result.examples} examples, {result.decode_steps} decode steps; loss at full depth "
        f"{result.loss.value:.3f} nats per token."
    )


def inspection_markdown(result: InspectionResult) -> str:
    """Render the report as Markdown.

    Args:
        result: The figures of all layers.

    Returns:
        The text of inspect.md.
    """
    rows = [_cells(layer) for layer in result.layers]
    parts = [
        "# What each layer is worth",
        summary(result),
        conditions(result),
        "![Predictions, states and losses by layer](inspect.png)",
        markdown_table(HEADER, rows, align=["right"] * len(HEADER)),
        *NOTES,
    ]
    return "\n\n".join(parts) + "\n"


def print_inspection(result: InspectionResult, console: Console) -> None:
    """Print the report, with the layers that are cheapest to drop in bold.

    Args:
        result: The figures of all layers.
        console: Of 120 columns or more.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    rows = [_cells(layer) for layer in result.layers]
    for name, column in zip(HEADER, zip(*rows, strict=True), strict=True):
        table.add_column(name, justify="right", width=max(map(len, [*name.split(), *column])))
    for layer, cells in enumerate(rows):
        table.add_row(*cells, style="bold" if layer in result.cheapest_first[:CHEAPEST] else "")
    console.print(conditions(result), highlight=False, markup=False)
    console.print(table)
    for note in NOTES:
        console.print(note, style="dim", highlight=False, markup=False)
    console.print(summary(result), style="bold", highlight=False, markup=False)


def _cells(layer: InspectedLayer) -> list[str]:
    """Return one layer's cells under ``HEADER``."""
    return [
        str(layer.layer),
        estimate(layer.agreement, 1, 100),
        estimate(layer.saturation, 1, 100),
        f"{layer.confidence.value:.3f}",
        f"{layer.cosine.value:.3f}",
        estimate(layer.dropped_loss, 3),
        estimate(layer.dropped_agreement, 1, 100),
    ]
