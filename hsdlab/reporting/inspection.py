"""The exit-suitability report: figures with intervals, a sentence, tables, files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hsdlab.records.bootstrap import LEVEL, bootstrap_interval
from hsdlab.records.files import plain, replace_figure, replace_file
from hsdlab.reporting.inspection_figure import CHEAPEST, inspection_figure
from hsdlab.runs.bench import describe_model
from hsdlab.runs.inspect import FloatArray, Inspection, inspect_layers

SCHEMA_VERSION = 1
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
    f"Means over the decode steps, the prompt at full depth; in brackets the {LEVEL:.0%} bootstrap interval over the "
    "examples.",
    "A layer's prediction: the final norm and the head on its output. The oracle leaves at the first layer that "
    "predicts what the last one does: on these states no exit that keeps every token runs fewer layers, and a real one "
    "has to guess where that is.",
    "Dropped: the layer is left out of the decode steps only. What several layers cost together is not their sum.",
)


def run_inspection(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    text: str,
    output: Path,
    run: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure every layer of a model on some text; print and write the report.

    Args:
        model: A decoder-only transformers model in eval mode.
        batches: See :func:`~hsdlab.runs.inspect.inspect_layers`.
        text: What the text after the prompts is, for the report.
        output: Folder for inspect.json, inspect.md and inspect.png; made if missing, files of an earlier run are
            replaced.
        run: Provenance of the run for inspect.json, ready for JSON.

    Returns:
        What inspect.json holds.

    Raises:
        UserError, UnsupportedModelError: See :func:`~hsdlab.runs.inspect.inspect_layers`.
    """
    report = {
        "version": SCHEMA_VERSION,
        "model": describe_model(model),
        "text": text,
        **figures(inspect_layers(model, batches)),
        "run": run,
    }
    output.mkdir(parents=True, exist_ok=True)
    replace_file(output / "inspect.json", json.dumps(plain(report), indent=1, ensure_ascii=False) + "\n")
    replace_figure(output / "inspect.png", inspection_figure(report))
    replace_file(output / "inspect.md", markdown(report))
    print_report(report)
    return report


def figures(measured: Inspection) -> dict[str, Any]:
    """Return the means with their intervals: of the text, and of each layer."""
    steps = measured.steps
    layers = measured.agreement.shape[1]
    of_layers = {
        "agreement": measured.agreement,
        "saturation": measured.saturation,
        "confidence": measured.confidence,
        "cosine": measured.cosine,
        "dropped_loss": measured.dropped_loss - measured.loss[:, None],
        "dropped_agreement": measured.dropped_agreement,
    }
    rows: list[dict[str, Any]] = [
        {"layer": layer, **{name: _mean(sums[:, layer], steps) for name, sums in of_layers.items()}}
        for layer in range(layers)
    ]
    return {
        "examples": len(steps),
        "decode_steps": int(steps.sum()),
        "loss": _mean(measured.loss, steps),
        "oracle_layers": _mean(measured.oracle_layers, steps),
        # the layers that are not saturated, and the first that is
        "saturated_layers": _mean((layers + 1) * steps - measured.saturation.sum(axis=1), steps),
        "cheapest_first": sorted(range(layers), key=lambda layer: rows[layer]["dropped_loss"]["value"]),
        "layers": rows,
    }


def summary(report: Mapping[str, Any]) -> str:
    """Return what the figures say, in three sentences."""
    layers, order = report["layers"], report["cheapest_first"]
    cheapest, dearest = layers[order[0]], layers[order[-1]]
    others = ", ".join(str(layer) for layer in order[1:CHEAPEST])
    return (
        f"An oracle exit would run {_interval(report['oracle_layers'], 1)} of {len(layers)} layers; the prediction no "
        f"longer changes after {_interval(report['saturated_layers'], 1)}. Dropping layer {cheapest['layer']} "
        f"costs least ({cheapest['dropped_loss']['value']:+.3f} nats per token, "
        f"{cheapest['dropped_agreement']['value']:.1%} of the predictions unchanged)"
        + (f", then {others}" if others else "")
        + f". Dropping layer {dearest['layer']} costs most ({dearest['dropped_loss']['value']:+.3f})."
    )


def conditions(report: Mapping[str, Any]) -> str:
    """Return the model and the text in one line."""
    model = report["model"]
    return (
        f"{model['name'] or model['class']}, {model['num_layers']} layers, {model['dtype']} on {model['device']}; "
        f"{report['text']}; {report['examples']} examples, {report['decode_steps']} decode steps; loss at full depth "
        f"{report['loss']['value']:.3f} nats per token."
    )


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report in Markdown."""
    lines = [HEADER, ["---:"] * len(HEADER), *(_cells(row) for row in report["layers"])]
    return (
        "\n\n".join(
            [
                "# What each layer is worth",
                summary(report),
                conditions(report),
                "![Predictions, states and losses by layer](inspect.png)",
                "\n".join(f"| {' | '.join(line)} |" for line in lines),
                *NOTES,
            ]
        )
        + "\n"
    )


def print_report(report: Mapping[str, Any]) -> None:
    """Print the report on the terminal; the layers that are cheapest to drop in bold."""
    console = Console()
    console.width = max(console.width, 120)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    rows = [_cells(row) for row in report["layers"]]
    for name, column in zip(HEADER, zip(*rows, strict=True), strict=True):
        table.add_column(name, justify="right", width=max(map(len, [*name.split(), *column])))
    for layer, cells in enumerate(rows):
        table.add_row(*cells, style="bold" if layer in report["cheapest_first"][:CHEAPEST] else "")
    console.print(conditions(report), highlight=False, markup=False)
    console.print(table)
    for note in NOTES:
        console.print(note, style="dim", highlight=False, markup=False)
    console.print(summary(report), style="bold", highlight=False, markup=False)


def _mean(sums: FloatArray, steps: FloatArray) -> dict[str, float]:
    """Return the mean over all decode steps, with its interval over resampled examples."""
    low, high = bootstrap_interval(np.stack([sums, steps], axis=1), lambda totals: float(totals[0] / totals[1]))
    return {"value": float(sums.sum() / steps.sum()), "low": low, "high": high}


def _cells(row: Mapping[str, Any]) -> list[str]:
    """Return one layer's cells under ``HEADER``."""
    return [
        str(row["layer"]),
        _interval(row["agreement"], 1, 100),
        _interval(row["saturation"], 1, 100),
        f"{row['confidence']['value']:.3f}",
        f"{row['cosine']['value']:.3f}",
        _interval(row["dropped_loss"], 3),
        _interval(row["dropped_agreement"], 1, 100),
    ]


def _interval(figure: Mapping[str, float], digits: int, unit: float = 1) -> str:
    """Return "value [low, high]", or the value alone where there is no interval."""
    value, low, high = (f"{unit * figure[name]:.{digits}f}" for name in ("value", "low", "high"))
    return value if low == "nan" else f"{value} [{low}, {high}]"
