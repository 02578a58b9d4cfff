"""A calibration for people: the chosen setting with its guarantee, the table of the tests, a picture."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hsdlab.records.calibration import CalibrationResult
from hsdlab.records.files import replace_file
from hsdlab.records.labels import metric_label
from hsdlab.reporting.calibration_figure import calibration_figure, level
from hsdlab.reporting.figures import replace_figure
from hsdlab.reporting.markdown import folded_run, markdown_table
from hsdlab.reporting.tables import (
    COSTS_OF_A_CHOICE,
    MISSING,
    cost_cells,
    cost_in_words,
    terminal_table,
    time_notes,
)

FILE = "calibration.json"
BOUND_LABELS = {
    "hoeffding": "Hoeffding's p-value",
    "hoeffding_bentkus": "the Hoeffding-Bentkus p-value",
    "binomial": "the exact binomial p-value",
}


def write_calibration(result: CalibrationResult, folder: Path) -> None:
    """Write calibration.md, calibration.json and calibration.png, each whole or not at all.

    Args:
        result: The calibration, with one test or more.
        folder: A missing folder is created. Files of an earlier calibration are replaced.
    """
    result.write(folder / FILE)
    replace_figure(folder / "calibration.png", calibration_figure(result))
    replace_file(folder / "calibration.md", calibration_markdown(result))


def calibration_markdown(result: CalibrationResult) -> str:
    """Render the report as Markdown.

    Args:
        result: The calibration, with one test or more.

    Returns:
        The text of calibration.md, with the run's provenance folded at its end.
    """
    names = [f"`{row.name}`" for row in result.comparison.rows]
    rows = [[name, *cells] for name, cells in zip(names, _cells(result), strict=True)]
    parts = [
        "# Calibration",
        guarantee(result),
        markdown_table(["Strategy", *_header(result)], rows),
        "\n".join(f"- {note}" for note in notes(result)),
        "![Tolerance against the risk of what would be chosen](calibration.png)",
        folded_run(result.run),
    ]
    return "\n\n".join(parts) + "\n"


def print_calibration(result: CalibrationResult, console: Console) -> None:
    """Print the table, the notes and the guarantee.

    Args:
        result: The calibration, with one test or more.
        console: Of 120 columns or more.
    """
    title = f"Calibration on {len(result.example_ids)} examples"
    table = terminal_table(title, "Strategy", _header(result))
    for row, cells in zip(result.comparison.rows, _cells(result), strict=True):
        table.add_row(Text(row.name), *cells, style="bold" if row is result.chosen else "")
    console.print(table)
    for note in notes(result):
        console.print(Text(note, style="dim"))
    console.print(Text(guarantee(result), style="bold"))


def guarantee(result: CalibrationResult) -> str:
    """Say what is guaranteed.

    Args:
        result: The calibration, with one test or more.

    Returns:
        A sentence on the guarantee and one on the cost of the choice; where no setting passed, why not.
    """
    if result.chosen_test is None:
        return _nothing_passed(result)
    return (
        f"With probability at least {level(result)} over the draw of the {len(result.example_ids)} calibration "
        f"examples, {result.chosen.name} {_promise(result)}. On these examples: {cost_in_words(result.chosen)}."
    )


def notes(result: CalibrationResult) -> list[str]:
    """Say how to read the table and for whom the guarantee holds.

    Args:
        result: The calibration, with one test or more.

    Returns:
        Notes of a sentence or more each.
    """
    examples, tested = len(result.example_ids), len(result.tests)
    if not result.tests[-1].passed:
        end = "the first that does not pass ends the test"
        end += ", and no later one was decoded" if tested < len(result.settings) else ""
    elif tested == len(result.settings):
        end = "all passed: a longer list might hold a faster one"
    else:
        end = "the run was cut short, which does not hurt the guarantee of what has passed"
    lines = [
        f"{tested} of {len(result.settings)} settings were tested: {end}.",
        f"Loss of an example: {_loss_label(result)}. Risk: its expectation on a new example. Test: "
        f"{BOUND_LABELS[result.bound]}, fixed sequence, error level {result.error:g}, tolerance {result.tolerance:g}.",
        "The guarantee is for new examples that come from where the calibration examples come from, decoded with "
        "the same model, prompt, length and search. It is for their average loss, not for each one, and for a "
        "tolerance and an order of settings that were fixed before the results were seen.",
        "Times are of this run, one strategy after the other; `bench` times them in alternation.",
        *time_notes(result.comparison.rows, "full depth"),
    ]
    if examples < result.examples_needed:
        needed = result.examples_needed
        lines.append(f"Too few examples: {examples}. A setting that never loses passes with {needed}.")
    return lines


def _promise(result: CalibrationResult) -> str:
    tolerance, label = f"{result.tolerance:g}", metric_label(result.metric)
    if result.loss == "risk":
        return f"loses on average at most {tolerance} {label} against full depth"
    return f"writes texts that are on average at most {tolerance} (1 − {label}) away from full depth's"


def _nothing_passed(result: CalibrationResult) -> str:
    (row, first), full = result.tested[0], result.comparison.rows[0]
    sentence = (
        f"No setting is shown to be one that {_promise(result)}: take full depth "
        f"({cost_in_words(full)}). The first in the list, {row.name}, has a mean loss of "
        f"{first.mean_loss:.3f}, and a risk of at most {first.risk_upper_bound:.3f} with probability {level(result)}."
    )
    examples, needed = len(result.example_ids), result.examples_needed
    if examples < needed:
        sentence += f" With {examples} examples none could pass: {needed} are needed, or more."
    return sentence


def _loss_label(result: CalibrationResult) -> str:
    """Return the loss of an example in words."""
    label = metric_label(result.metric)
    if result.loss == "risk":
        return f"max(0, {label} of full depth − {label} of the setting)"
    return f"1 − {label} of the setting's text against full depth's"


def _header(result: CalibrationResult) -> list[str]:
    return ["Mean loss", f"Risk at most ({level(result)})", "p-value", "Passed", *COSTS_OF_A_CHOICE]


def _cells(result: CalibrationResult) -> list[list[str]]:
    """Return a line for full depth and for each test, under the header."""
    lines = [["0", "0", MISSING, "reference"]]
    for test in result.tests:
        passed = "yes" if test.passed else "no"
        lines.append([f"{test.mean_loss:.4f}", f"{test.risk_upper_bound:.4f}", _p_value(test.p_value), passed])
    rows = result.comparison.rows
    return [line + cost_cells(row, COSTS_OF_A_CHOICE) for row, line in zip(rows, lines, strict=True)]


def _p_value(value: float) -> str:
    """Return two significant digits; a power of ten where it is small."""
    return f"{value:.2g}" if value >= 1e-4 or not math.isfinite(value) else f"{value:.0e}"
