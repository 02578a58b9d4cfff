"""An inspection for people: what each layer is worth, as a sentence, a table and a picture."""

from collections.abc import Sequence
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
from hsdlab.reporting.reliability_figure import reliability_figure
from hsdlab.reporting.tables import MISSING, estimate, number

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
CONFIDENCE_HEADER = ("AUROC, softmax response", "AUROC, cosine", "Calibration error")
AGREEMENT_BEFORE = "Predicts the final token before %"
NOTES = (
    f"Means over the decode steps, with the prompt at full depth. In brackets: the {LEVEL:.0%} bootstrap interval over "
    "the examples.",
    "A layer's prediction: the final norm and the head on its output. The oracle exits at the first layer that "
    "predicts the last layer's token. On these states, no exit that keeps every token runs fewer layers. A real exit "
    "has to guess which layer that is.",
    "Dropped: the decode steps skip that one layer. The losses of several layers do not add up.",
)
CONFIDENCE_NOTE = (
    "AUROC: how well a layer's confidence tells the steps in which it predicts the last layer's token from the others. "
    "1 is perfect, 0.5 tells nothing; no figure where all steps are of one kind. Calibration error: how far the "
    "softmax response is from the share of the steps in which it does, on average."
)


def write_inspection(result: InspectionResult, folder: Path) -> None:
    """Write inspect.json, inspect.md, inspect.png and reliability.png, each whole or not at all.

    Args:
        result: The figures of all layers.
        folder: A missing folder is created. Files of an earlier inspection are replaced.
    """
    result.write(folder / FILE)
    replace_figure(folder / "inspect.png", inspection_figure(result))
    if _has_reliability(result):
        replace_figure(folder / "reliability.png", reliability_figure(result))
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
    first, *confidence = confidence_table(result)
    header = (*HEADER, *first[1:])
    rows = [[name, *_cells(layer)[1:], *cells] for layer, (name, *cells) in zip(result.layers, confidence, strict=True)]
    parts = [
        "# What each layer is worth",
        summary(result),
        conditions(result),
        "![Predictions, states and losses by layer](inspect.png)",
        markdown_table(header, rows, align=["right"] * len(header)),
        *notes(result),
        *(["![Calibration curves and AUROC by layer](reliability.png)"] if _has_reliability(result) else []),
    ]
    return "\n\n".join(parts) + "\n"


def confidence_table(result: InspectionResult) -> list[list[str]]:
    """Make the table of how well each layer's confidence tells its agreement with the last layer.

    Args:
        result: The figures of all layers.

    Returns:
        The header and one row per layer, each with the layer first; columns of the model before where there is one.
        Without measured reliability, the layers alone.
    """
    header, rows = ["Layer"], [[_name(layer.layer, result)] for layer in result.layers]
    if _has_reliability(result):
        header += CONFIDENCE_HEADER
        for row, layer in zip(rows, result.layers, strict=True):
            row += _confidence_cells(layer)
    if result.before is not None:
        header += [AGREEMENT_BEFORE, *(f"{name}, before" for name in CONFIDENCE_HEADER)]
        for row, layer in zip(rows, result.before.layers, strict=True):
            row += [estimate(layer.agreement, 1, 100), *_confidence_cells(layer)]
    return [header, *rows]


def notes(result: InspectionResult) -> list[str]:
    """Say what the columns mean.

    Args:
        result: The figures of all layers.

    Returns:
        Paragraphs; on the confidence, the exits and the model before where the result has them.
    """
    said = list(NOTES)
    if _has_reliability(result):
        said.append(CONFIDENCE_NOTE)
    if result.exits:
        said.append("Exit: the model was trained to exit after this layer. Its predictions use the exit's adapter.")
    if result.before is not None:
        model = result.before.model
        said.append(f"Before: {model.name or model.class_name}, {model.dtype} on {model.device}, on the same examples.")
    return said


def print_inspection(result: InspectionResult, console: Console) -> None:
    """Print the report, with the layers that are cheapest to drop in bold.

    Args:
        result: The figures of all layers.
        console: Of 120 columns or more.
    """
    cheapest = result.cheapest_first[:CHEAPEST]
    console.print(conditions(result), highlight=False, markup=False)
    console.print(_terminal_table(HEADER, [_cells(layer) for layer in result.layers], cheapest))
    if _has_reliability(result):
        header, *rows = confidence_table(result)
        console.print(_terminal_table(header, rows))
    for note in notes(result):
        console.print(note, style="dim", highlight=False, markup=False)
    console.print(summary(result), style="bold", highlight=False, markup=False)


def _terminal_table(header: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[int] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name, column in zip(header, zip(*rows, strict=True), strict=True):
        table.add_column(name, justify="right", width=max(map(len, [*name.split(), *column])))
    for layer, cells in enumerate(rows):
        table.add_row(*cells, style="bold" if layer in bold else "")
    return table


def _has_reliability(result: InspectionResult) -> bool:
    """Whether the version that measured it computed the reliability of the confidence."""
    return all(layer.reliability is not None for layer in result.layers)


def _name(layer: int, result: InspectionResult) -> str:
    return f"{layer} (exit)" if layer in result.exits else str(layer)


def _confidence_cells(layer: InspectedLayer) -> list[str]:
    """Return one layer's cells under ``CONFIDENCE_HEADER``."""
    found = layer.reliability
    if found is None:
        return [MISSING] * len(CONFIDENCE_HEADER)
    return [number(value, 3) for value in (found.auroc, found.saturation_auroc, found.calibration_error)]


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
