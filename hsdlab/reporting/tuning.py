"""A tuning as text: the chosen setting, the frontier as a table, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from hsdlab.records.comparison import Comparison, Row, StrategyResult
from hsdlab.records.files import plain, replace_figure, replace_file
from hsdlab.reporting import tables
from hsdlab.reporting.row_costs import COSTS, cost_cells, cost_document, cost_in_words
from hsdlab.reporting.tuning_figure import tuning_figure

if TYPE_CHECKING:
    from hsdlab.tuning import Goal, Setting

SCHEMA_VERSION = 1
CHOSEN, MET, MISSED = "chosen", "met", "missed"


@dataclass(frozen=True)
class TuningReport:
    """What was searched, what of it was decoded, and what came of it.

    Args:
        goal: What is looked for.
        metric: The quality; a key of the results' scores.
        reference: Full depth's result.
        reference_score: The score of full depth on its own texts.
        settings: All different settings that were tried.
        frontier: Those that no other one beats in ideal speed-up and score, slowest first.
        decoded: Results of settings of the frontier, by their place on it, in the order in which they were decoded.
        scored_texts: How many texts the scores are of.
        run: Provenance, as `run_provenance` gives it.
    """

    goal: Goal
    metric: str
    reference: StrategyResult
    reference_score: float
    settings: Sequence[Setting]
    frontier: Sequence[Setting]
    decoded: Mapping[int, StrategyResult]
    scored_texts: int
    run: Mapping[str, Any]

    @cached_property
    def comparison(self) -> Comparison:
        """Full depth and what was decoded, slowest first."""
        return Comparison([self.reference, *(self.decoded[place] for place in sorted(self.decoded))], self.run)

    @cached_property
    def rows(self) -> dict[int, Row]:
        """The line of the comparison of each decoded place of the frontier."""
        return dict(zip(sorted(self.decoded), self.comparison.rows[1:], strict=True))

    @cached_property
    def verdicts(self) -> list[bool | None]:
        """Whether each setting of the frontier meets the goal; None where it was not decoded."""
        rows = [self.rows.get(place) for place in range(len(self.frontier))]
        return [None if row is None else self.goal.met(self.share(row), row.speed_up) for row in rows]

    @property
    def chosen_place(self) -> int | None:
        """Where the chosen setting is on the frontier; None where full depth is to be taken."""
        shares = [self.share(self.rows[i]) if i in self.rows else math.nan for i in range(len(self.frontier))]
        return self.goal.chosen(self.verdicts, shares)

    @property
    def chosen_row(self) -> Row:
        """The chosen setting's line of the comparison; full depth's where none meets the goal."""
        place = self.chosen_place
        return self.comparison.rows[0] if place is None else self.rows[place]

    @property
    def chosen(self) -> StrategyResult:
        """What the chosen setting gave."""
        return self.chosen_row.result

    @property
    def metric_label(self) -> str:
        """The metric as tables name it."""
        return tables.METRIC_LABELS[self.metric]

    def share(self, row: Row) -> float:
        """Return a result's quality as a share of full depth's."""
        return row.percent_of_baseline[self.metric].value / 100

    def summary(self) -> str:
        """Return what was found, in a sentence or two."""
        row, label = self.chosen_row, self.metric_label
        examples = len(self.reference.examples)
        if not row.is_baseline:
            kept = f"{tables.percent_of_baseline(row, self.metric)} % of full depth's {label}"
            costs = f"on {examples} validation examples: {cost_in_words(row)}"
            if self.goal.max_loss is not None:
                return f"{row.result.name} is the fastest decoded that keeps {self._asked()}: {kept}, {costs}."
            return f"{row.result.name} is the best decoded that is {self._asked()}: {kept}, {costs}."
        take = f"take full depth ({cost_in_words(row)})"
        if not self.frontier:
            most = max((setting.ideal_speedup for setting in self.settings), default=1.0)
            return f"No setting tried can be {self._asked()}, the most is {most:.2f}×: {take}."
        if not self.rows:
            return f"No setting was decoded: {take}."
        if self.goal.max_loss is not None:
            closest = max(self.rows.values(), key=self.share)
            got = f"{100 * self.share(closest):.1f} %"
            return f"No decoded setting keeps {self._asked()}: {take}. The closest, {closest.result.name}, keeps {got}."
        closest = max(self.rows.values(), key=lambda each: each.speed_up)
        got = f"{closest.speed_up:.2f}×"
        return f"No decoded setting is {self._asked()}: {take}. The closest, {closest.result.name}, is {got}."

    def _asked(self) -> str:
        if self.goal.max_loss is not None:
            return f"{100 * (1 - self.goal.max_loss):.10g} % or more of full depth's {self.metric_label}"
        return f"{self.goal.speedup:.10g}× as fast as full depth or more"

    def notes(self) -> list[str]:
        """Return how to read the table and what the choice is worth."""
        scored = sum(setting.score is not None for setting in self.settings)
        open_place = self.goal.next_to_decode(self.verdicts)
        end = "the others could not change the choice" if open_place is None else "another might be better (--decodes)"
        lines = [
            f"{len(self.settings)} different settings were tried, {scored} of them scored; "
            f"{len(self.frontier)} are on the frontier of speed and score, {len(self.decoded)} of them decoded"
            + (f": {end}." if len(self.decoded) < len(self.frontier) else "."),
            f"Nats per token: mean negative log-likelihood of full depth's own texts ({self.scored_texts} of them) "
            f"under the setting, teacher-forced; {self.reference_score:.4f} at full depth. At most: weights read at "
            "full depth over weights read under the setting.",
            "Chosen on the validation split, among several: its quality there is somewhat flattered. `evaluate.py "
            "test` gives that of other examples, `calibrate` a guarantee.",
            "Times are of this run, one strategy after the other; in `evaluate.py bench` they take turns.",
        ]
        if any(row.saves_layers_but_no_time for row in self.rows.values()):
            lines.append(f"{tables.SLOW} Layers were saved, but a decode step took longer than full depth's.")
        if any(row.faster_than_its_layers for row in self.rows.values()):
            lines.append(f"{tables.TOO_FAST} More than the layers allow: the machine did other work meanwhile.")
        return lines

    def to_markdown(self) -> str:
        """Return the report in Markdown, with the run's provenance folded at its end."""
        run = json.dumps(plain(self.run), indent=2, ensure_ascii=False, default=str)
        names, cells = zip(*self._lines(), strict=True)
        parts = [
            "# Tuning",
            self.summary(),
            tables.named_pipe_table([f"`{name}`" for name in names], self._header(), cells),
            "\n".join(f"- {note}" for note in self.notes()),
            "![Quality and score against average layers](frontier.png)",
            f"<details><summary>The run</summary>\n\n```json\n{run}\n```\n\n</details>",
        ]
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> str:
        """Return all settings and figures as JSON; what is not a number becomes null."""
        document = {
            "schema_version": SCHEMA_VERSION,
            "run": self.run,
            "goal": {"max_loss": self.goal.max_loss, "speedup": self.goal.speedup},
            "metric": self.metric,
            "examples": len(self.reference.examples),
            "scored_texts": self.scored_texts,
            "summary": self.summary(),
            "chosen": {"name": self.chosen.name, "strategy": self.chosen.strategy},
            "reference": cost_document(self.comparison.rows[0]) | {"nats_per_token": self.reference_score},
            "frontier": [
                _setting_document(setting)
                | {"verdict": self.verdicts[place], "decoded": self._decoded_document(self.rows.get(place))}
                for place, setting in enumerate(self.frontier)
            ],
            "settings": [_setting_document(setting) for setting in self.settings],
        }
        return json.dumps(plain(document), indent=2, ensure_ascii=False, default=str) + "\n"

    def _decoded_document(self, row: Row | None) -> dict[str, Any] | None:
        if row is None:
            return None
        percent = row.percent_of_baseline[self.metric]._asdict()
        return cost_document(row) | {
            "percent_of_full_depth": percent,
            "faster_than_its_layers": row.faster_than_its_layers,
        }

    def print(self, console: Console) -> None:
        """Print the frontier, the notes and the choice on a terminal of at least 120 columns."""
        table = tables.terminal_table(f"The frontier, on {len(self.reference.examples)} examples", self._header())
        for name, cells in self._lines():
            style = "bold" if cells[-1] == CHOSEN else "" if cells[-1] in (MET, MISSED) else "dim"
            table.add_row(Text(name), *cells, style=style)
        console.print(table)
        for note in self.notes():
            console.print(Text(note, style="dim"))
        console.print(Text(self.summary(), style="bold"))

    def write(self, folder: Path) -> None:
        """Write tuning.md, tuning.json and frontier.png, each whole or not at all.

        Args:
            folder: Made if missing; files of an earlier tuning are replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "tuning.json", self.to_json())
        replace_figure(folder / "frontier.png", tuning_figure(self))
        replace_file(folder / "tuning.md", self.to_markdown())

    def _header(self) -> list[str]:
        return ["Nats per token", "At most", f"% of full {self.metric_label}", *COSTS, "Goal"]

    def _lines(self) -> list[tuple[str, list[str]]]:
        """Return name and cells of full depth and of each setting of the frontier, slowest first."""
        full = self.comparison.rows[0]
        lines = [(full.result.name, self._cells(self.reference_score, 1.0, full, tables.MISSING))]
        for place, (setting, verdict) in enumerate(zip(self.frontier, self.verdicts, strict=True)):
            score = math.nan if setting.score is None else setting.score
            if verdict is None:
                planned, unknown = f"{setting.average_layers:.2f}", tables.MISSING
                cells = [f"{score:.4f}", f"{setting.ideal_speedup:.2f}×", unknown, planned, *[unknown] * 3]
            else:
                goal = MET if verdict else MISSED
                cells = self._cells(score, setting.ideal_speedup, self.rows[place], goal)
            lines.append((repr(setting.strategy), cells))
        chosen = 0 if self.chosen_place is None else self.chosen_place + 1
        lines[chosen][1][-1] = CHOSEN
        return lines

    def _cells(self, score: float, ideal_speedup: float, row: Row, goal: str) -> list[str]:
        percent = tables.percent_of_baseline(row, self.metric)
        return [f"{score:.4f}", f"{ideal_speedup:.2f}×", percent, *cost_cells(row), goal]


def _setting_document(setting: Setting) -> dict[str, Any]:
    return {
        "name": repr(setting.strategy),
        "strategy": setting.strategy.config(),
        "average_layers": setting.average_layers,
        "ideal_speed_up": setting.ideal_speedup,
        "nats_per_token": setting.score,
    }
