"""A tuning of drafts for people: the fastest draft, the measured ones as a table, a picture."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from hsdlab.records.comparison import ComparisonRow
from hsdlab.records.draft_tuning import DraftPrediction, DraftTuningResult
from hsdlab.records.files import replace_file
from hsdlab.reporting.draft_tuning_figure import draft_tuning_figure
from hsdlab.reporting.figures import replace_figure
from hsdlab.reporting.markdown import folded_run, markdown_table
from hsdlab.reporting.tables import (
    MISSING,
    cost_cells,
    interval_below,
    number,
    terminal_table,
    time_notes,
    widen_for_intervals,
)

FILE, PICTURE = "tuning.json", "drafts.png"
CHOSEN = "chosen"
HEADER = (
    "Drafted tokens",
    "Draft vocabulary",
    "Layers",
    "Accepted % (predicted)",
    "Tokens per verification (predicted)",
    "Predicted speed-up",
    "Measured speed-up",
    "Choice",
)


def write_draft_tuning(result: DraftTuningResult, folder: Path) -> None:
    """Write tuning.md, tuning.json and drafts.png, each whole or not at all.

    Args:
        result: The tuning.
        folder: A missing folder is created. Files of an earlier tuning are replaced.
    """
    result.write(folder / FILE)
    replace_figure(folder / PICTURE, draft_tuning_figure(result))
    replace_file(folder / "tuning.md", draft_tuning_markdown(result))


def draft_tuning_markdown(result: DraftTuningResult) -> str:
    """Render the report as Markdown.

    Args:
        result: The tuning.

    Returns:
        The text of tuning.md, with the run's provenance folded at its end.
    """
    rows = [[f"`{name}`", *cells] for name, cells in _lines(result)]
    parts = [
        "# Tuning of drafts",
        summary(result),
        markdown_table(["Draft", *HEADER], rows),
        "\n".join(f"- {note}" for note in notes(result)),
        f"![Predicted and measured speed-ups]({PICTURE})",
        folded_run(result.run),
    ]
    return "\n\n".join(parts) + "\n"


def print_draft_tuning(result: DraftTuningResult, console: Console) -> None:
    """Print the measured drafts, the notes and the choice.

    Args:
        result: The tuning.
        console: Of 120 columns or more.
    """
    title = f"Verified drafts, on {result.comparison.baseline.examples} examples"
    table = terminal_table(title, "Draft", HEADER)
    widen_for_intervals(table)
    for name, cells in _lines(result):
        style = "bold" if cells[-1] == CHOSEN else ""
        table.add_row(Text(name), *map(interval_below, cells), style=style)
    console.print(table)
    for note in notes(result):
        console.print(Text(note, style="dim"))
    console.print(Text(summary(result), style="bold"))


def summary(result: DraftTuningResult) -> str:
    """Say which draft is chosen.

    Args:
        result: The tuning.

    Returns:
        A sentence or two on the fastest draft, or on why full depth is to be taken.
    """
    row, examples = result.chosen_row, result.comparison.baseline.examples
    if not row.is_baseline:
        text = f"{row.name} is the fastest measured: {row.speed_up:.2f}× full depth's speed on {examples} validation "
        text += f"examples, {row.figure('acceptance_rate'):.0%} of the drafted tokens accepted."
        if row.speed_up_interval is not None and row.speed_up_interval[0] <= 1:
            text += " Its interval reaches down to full depth's speed: with more examples it would be narrower."
        return text
    if not result.rows:
        return "No setting tried skips a layer: take full depth."
    closest = max(result.rows, key=lambda each: each.speed_up)
    return (
        f"No draft pays on this model: take full depth. The closest, {closest.name}, is {closest.speed_up:.2f}× as "
        "fast. A model that was trained to skip layers drafts better: docs/training.md."
    )


def notes(result: DraftTuningResult) -> list[str]:
    """Say how to read the table, and how far the choice can be trusted.

    Args:
        result: The tuning.

    Returns:
        Notes of a sentence or more each.
    """
    best = max((each.speed_up for each in result.predictions), default=1.0)
    lines = [
        f"{len(result.drafts)} different drafts were tried, {len(result.measured)} with their lengths measured. The "
        f"predictions are made on {result.scored_texts} of full depth's texts, from one pass with teacher forcing for "
        "each draft, and from the weights that drafts and verifications read, for one sequence at a time.",
        "Measured speed-up: of decode steps, the prefill apart. Each batch was decoded by all in turn, and the "
        f"interval ({result.comparison.bootstrap.level:.0%} bootstrap) draws the same batches for both.",
        _texts_note(result),
        "The choice is the fastest of several on the validation split, so its speed-up there is optimistic. `compare` "
        "and `bench` measure it on other examples.",
        *time_notes(result.rows, "full depth"),
    ]
    if result.predictions and best < 1:
        lines.insert(
            1,
            f"No draft was predicted to be faster than full depth, the most is {best:.2f}×. The best were measured all "
            "the same, since the prediction counts weights and not time.",
        )
    return lines


def _texts_note(result: DraftTuningResult) -> str:
    """Say whether all texts are those of full depth."""
    others = sum(each.other_texts for each in result.measured)
    texts = len(result.measured) * result.comparison.baseline.examples
    if not others:
        return f"All {texts} texts of the drafts are those of full depth."
    return (
        f"{others} of {texts} texts of the drafts differ from full depth's: there, two tokens were equally probable up "
        "to the rounding of the dtype."
    )


def _lines(result: DraftTuningResult) -> list[tuple[str, list[str]]]:
    """Return name and cells of full depth and of each measured draft, the highest prediction first."""
    full = result.comparison.rows[0]
    empty = [MISSING, MISSING, f"{full.num_layers}", *[MISSING] * 2, "1.00×", "1.00×", MISSING]
    lines = [(full.name, empty)]
    for measured, prediction, row in zip(result.measured, result.predictions, result.rows, strict=True):
        draft = result.drafts[measured.draft]
        lines.append((draft.name, _cells(draft.average_layers, prediction, row)))
    lines[0 if result.chosen is None else result.chosen + 1][1][-1] = CHOSEN
    return lines


def _cells(average_layers: float, prediction: DraftPrediction, row: ComparisonRow) -> list[str]:
    accepted, predicted = (
        number(100 * share, 0) for share in (row.figure("acceptance_rate"), prediction.acceptance_rate)
    )
    tokens, vocabulary = number(row.figure("tokens_per_verification"), 2), prediction.draft_vocabulary
    return [
        str(prediction.num_draft_tokens),
        "all" if vocabulary is None else str(vocabulary),
        f"{average_layers:.2f}",
        f"{accepted} ({predicted})",
        f"{tokens} ({prediction.tokens_per_verification:.2f})",
        f"{prediction.speed_up:.2f}×",
        *cost_cells(row, ["Measured speed-up"]),
        MISSING,
    ]
