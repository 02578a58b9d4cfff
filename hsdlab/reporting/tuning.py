"""A tuning for people: the chosen setting, the frontier as a table, a picture."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hsdlab.records.comparison import ComparisonRow
from hsdlab.records.files import replace_file
from hsdlab.records.labels import metric_label
from hsdlab.records.tuning import TuningResult
from hsdlab.reporting.figures import replace_figure
from hsdlab.reporting.markdown import folded_run, markdown_table
from hsdlab.reporting.tables import (
    COSTS_OF_A_CHOICE,
    MISSING,
    cost_cells,
    cost_in_words,
    percent_of_baseline,
    terminal_table,
    time_notes,
)
from hsdlab.reporting.tuning_figure import tuning_figure

FILE, PICTURE = "tuning.json", "frontier.png"
CHOSEN, MET, MISSED = "chosen", "met", "missed"


def write_tuning(result: TuningResult, folder: Path) -> None:
    """Write tuning.md, tuning.json and frontier.png, each whole or not at all.

    Args:
        result: The tuning as far as it has come.
        folder: A missing folder is created. Files of an earlier tuning are replaced.
    """
    result.write(folder / FILE)
    replace_figure(folder / PICTURE, tuning_figure(result))
    replace_file(folder / "tuning.md", tuning_markdown(result))


def tuning_markdown(result: TuningResult) -> str:
    """Render the report as Markdown.

    Args:
        result: The tuning as far as it has come.

    Returns:
        The text of tuning.md, with the run's provenance folded at its end.
    """
    rows = [[f"`{name}`", *cells] for name, cells in _lines(result)]
    parts = [
        "# Tuning",
        summary(result),
        markdown_table(["Strategy", *_header(result)], rows),
        "\n".join(f"- {note}" for note in notes(result)),
        f"![Quality and score against average depth]({PICTURE})",
        folded_run(result.run),
    ]
    return "\n\n".join(parts) + "\n"


def print_tuning(result: TuningResult, console: Console) -> None:
    """Print the frontier, the notes and the choice.

    Args:
        result: The tuning as far as it has come.
        console: Of 120 columns or more.
    """
    examples = result.comparison.baseline.examples
    table = terminal_table(f"The frontier, on {examples} examples", "Strategy", _header(result))
    for name, cells in _lines(result):
        style = "bold" if cells[-1] == CHOSEN else "" if cells[-1] in (MET, MISSED) else "dim"
        table.add_row(Text(name), *cells, style=style)
    console.print(table)
    for note in notes(result):
        console.print(Text(note, style="dim"))
    console.print(Text(summary(result), style="bold"))


def summary(result: TuningResult) -> str:
    """Say which setting is chosen.

    Args:
        result: The tuning as far as it has come.

    Returns:
        A sentence or two on the chosen setting with its quality and cost, or on why full depth is to be taken.
    """
    row, label = result.chosen_row, metric_label(result.metric)
    if not row.is_baseline:
        kept = f"{percent_of_baseline(row, result.metric)} % of full depth's {label}"
        costs = f"on {row.examples} validation examples: {cost_in_words(row)}"
        if result.goal.max_loss is not None:
            return f"{row.name} is the fastest decoded that keeps {_asked(result)}: {kept}, {costs}."
        return f"{row.name} is the best decoded that is {_asked(result)}: {kept}, {costs}."
    take = f"take full depth ({cost_in_words(row)})"
    if not result.frontier:
        most = max((setting.ideal_speed_up for setting in result.settings), default=1.0)
        return f"No setting tried can be {_asked(result)}, the most is {most:.2f}×: {take}."
    if not result.rows:
        return f"No setting was decoded: {take}."
    if result.goal.max_loss is not None:
        closest = max(result.rows.values(), key=result.share)
        got = f"{100 * result.share(closest):.1f} %"
        return f"No decoded setting keeps {_asked(result)}: {take}. The closest, {closest.name}, keeps {got}."
    closest = max(result.rows.values(), key=lambda each: each.speed_up)
    got = f"{closest.speed_up:.2f}×"
    return f"No decoded setting is {_asked(result)}: {take}. The closest, {closest.name}, is {got}."


def notes(result: TuningResult) -> list[str]:
    """Say how to read the table, and how far the choice can be trusted.

    Args:
        result: The tuning as far as it has come.

    Returns:
        Notes of a sentence or more each.
    """
    scored = sum(setting.nats_per_token is not None for setting in result.settings)
    end = (
        "another might be better (--decodes)"
        if result.another_might_be_better
        else "the others could not change the choice"
    )
    return [
        f"{len(result.settings)} different settings were tried, {scored} of them scored. "
        f"{len(result.frontier)} are on the frontier of speed and score, {len(result.decoded)} of them decoded"
        + (f": {end}." if len(result.decoded) < len(result.frontier) else "."),
        f"Nats per token: mean negative log-likelihood of full depth's own texts ({result.scored_texts} of them) "
        f"under the setting, with teacher forcing. It is {result.reference_nats_per_token:.4f} at full depth. Ideal "
        "speed-up: weights read at full depth, divided by weights read under the setting.",
        "The choice is the best of several settings on the validation split, so its quality there is optimistic. "
        "`test` measures it on other examples, `calibrate` gives a guarantee.",
        "Times are of this run, one strategy after the other; `bench` times them in alternation.",
        *time_notes(list(result.rows.values()), "full depth"),
    ]


def _asked(result: TuningResult) -> str:
    if result.goal.max_loss is not None:
        return f"{100 * (1 - result.goal.max_loss):.10g} % or more of full depth's {metric_label(result.metric)}"
    return f"{result.goal.speedup:.10g}× as fast as full depth or more"


def _header(result: TuningResult) -> list[str]:
    return ["Nats per token", "Ideal speed-up", f"% of full {metric_label(result.metric)}", *COSTS_OF_A_CHOICE, "Goal"]


def _lines(result: TuningResult) -> list[tuple[str, list[str]]]:
    """Return name and cells of full depth and of each setting of the frontier, slowest first."""
    full = result.comparison.rows[0]
    lines = [(full.name, _cells(result, result.reference_nats_per_token, 1.0, full, MISSING))]
    for place, (setting, verdict) in enumerate(zip(result.frontier_settings, result.verdicts, strict=True)):
        score = math.nan if setting.nats_per_token is None else setting.nats_per_token
        if verdict is None:
            planned = f"{setting.average_layers:.2f}"
            cells = [f"{score:.4f}", f"{setting.ideal_speed_up:.2f}×", MISSING, planned, *[MISSING] * 3]
        else:
            cells = _cells(result, score, setting.ideal_speed_up, result.rows[place], MET if verdict else MISSED)
        lines.append((setting.name, cells))
    chosen = 0 if result.chosen is None else result.chosen + 1
    lines[chosen][1][-1] = CHOSEN
    return lines


def _cells(result: TuningResult, score: float, ideal_speed_up: float, row: ComparisonRow, goal: str) -> list[str]:
    percent = percent_of_baseline(row, result.metric)
    return [f"{score:.4f}", f"{ideal_speed_up:.2f}×", percent, *cost_cells(row, COSTS_OF_A_CHOICE), goal]
