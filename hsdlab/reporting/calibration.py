"""A calibration as text: the chosen setting with its guarantee, the table of the tests, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from hsdlab.calibration import Calibration, LossName, SettingTest, smallest_sample
from hsdlab.records.comparison import Comparison, Row, StrategyResult
from hsdlab.records.files import plain, replace_figure, replace_file
from hsdlab.reporting import tables
from hsdlab.reporting.calibration_figure import calibration_figure
from hsdlab.reporting.row_costs import COSTS, cost_cells, cost_document, cost_in_words

SCHEMA_VERSION = 1
BOUND_LABELS = {
    "hoeffding": "Hoeffding's p-value",
    "hoeffding_bentkus": "the Hoeffding-Bentkus p-value",
    "binomial": "the exact binomial p-value",
}


@dataclass(frozen=True)
class CalibrationReport:
    """What was tested and what came of it.

    Args:
        calibration: The tests, each of a setting's result; at least one.
        reference: Full depth's result, for the same examples in the same order, each with an id of its own.
        settings: Names of all settings in the list, those that were not tested too.
        loss: "risk" or "textual".
        metric: The loss is made of it.
        run: Provenance, as `run_provenance` gives it.
    """

    calibration: Calibration[StrategyResult]
    reference: StrategyResult
    settings: Sequence[str]
    loss: LossName
    metric: str
    run: Mapping[str, Any]

    @property
    def chosen(self) -> StrategyResult:
        """The setting that the guarantee is for; full depth where none passed."""
        return self.calibration.chosen or self.reference

    @cached_property
    def comparison(self) -> Comparison:
        """The costs of full depth and of all tested settings, in this order."""
        return Comparison([self.reference, *(test.setting for test in self.calibration.tests)], self.run)

    @property
    def tested(self) -> list[tuple[Row, SettingTest[StrategyResult]]]:
        """Each test with its line of the comparison."""
        return list(zip(self.comparison.rows[1:], self.calibration.tests, strict=True))

    @property
    def examples(self) -> int:
        """How many calibration examples there are."""
        return len(self.reference.examples)

    @property
    def needed(self) -> int:
        """With how many examples a setting without any loss passes."""
        return smallest_sample(self.calibration.bound, self.calibration.tolerance, self.calibration.error)

    @property
    def metric_label(self) -> str:
        """The metric as tables name it."""
        return tables.METRIC_LABELS.get(self.metric, self.metric.replace("_", " "))

    @property
    def loss_label(self) -> str:
        """The loss of an example in words."""
        if self.loss == "risk":
            return f"max(0, {self.metric_label} of full depth − {self.metric_label} of the setting)"
        return f"1 − {self.metric_label} of the setting's text against full depth's"

    @property
    def level(self) -> str:
        """1 − ε, in percent."""
        return f"{100 * (1 - self.calibration.error):.10g} %"

    def guarantee(self) -> str:
        """Return what holds, in one sentence, and what it is worth in another."""
        promise, test = self._promise(), self.calibration.chosen_test
        if test is None:
            return self._nothing_passed(promise)
        row = next(row for row, each in self.tested if each is test)
        return (
            f"With probability at least {self.level} over the draw of the {self.examples} calibration examples, "
            f"{row.result.name} {promise}. On these examples: {cost_in_words(row)}."
        )

    def _promise(self) -> str:
        tolerance = f"{self.calibration.tolerance:g}"
        if self.loss == "risk":
            return f"loses on average at most {tolerance} {self.metric_label} against full depth"
        return f"writes texts that are on average at most {tolerance} (1 − {self.metric_label}) away from full depth's"

    def _nothing_passed(self, promise: str) -> str:
        first, full = self.calibration.tests[0], self.comparison.rows[0]
        upper = self.calibration.upper_bound(first)
        sentence = (
            f"No setting is shown to be one that {promise}: take full depth "
            f"({cost_in_words(full)}). The first in the list, {first.setting.name}, has a mean loss of "
            f"{first.mean_loss:.3f}, and a risk of at most {upper:.3f} with probability {self.level}."
        )
        if self.examples < self.needed:
            sentence += f" With {self.examples} examples none could pass: {self.needed} are needed, or more."
        return sentence

    def notes(self) -> list[str]:
        """Return how to read the table and for whom the guarantee holds."""
        calibration, tested = self.calibration, len(self.calibration.tests)
        if not calibration.tests[-1].passed:
            end = "the first that does not pass ends the test"
            end += ", and no later one was decoded" if tested < len(self.settings) else ""
        elif tested == len(self.settings):
            end = "all passed: a longer list might hold a faster one"
        else:
            end = "the run was cut short, which does not hurt the guarantee of what has passed"
        lines = [
            f"{tested} of {len(self.settings)} settings were tested: {end}.",
            f"Loss of an example: {self.loss_label}. Risk: its expectation on a new example. Test: "
            f"{BOUND_LABELS[calibration.bound]}, fixed sequence, error level {calibration.error:g}, tolerance "
            f"{calibration.tolerance:g}.",
            "The guarantee is for new examples that come from where the calibration examples come from, decoded with "
            "the same model, prompt, length and search; for their average loss, not for each one; and for a tolerance "
            "and an order of settings that were fixed before the results were seen.",
            "Times are of this run, one strategy after the other; in `evaluate.py bench` they take turns.",
        ]
        if any(row.saves_layers_but_no_time for row, _ in self.tested):
            lines.append(f"{tables.SLOW} Layers were saved, but a decode step took longer than full depth's.")
        if any(row.faster_than_its_layers for row, _ in self.tested):
            lines.append(f"{tables.TOO_FAST} More than the layers allow: the machine did other work meanwhile.")
        if self.examples < self.needed:
            lines.append(f"Too few examples: {self.examples}. A setting that never loses passes with {self.needed}.")
        return lines

    def to_markdown(self) -> str:
        """Return the report in Markdown, with the run's provenance folded at its end."""
        run = json.dumps(plain(self.run), indent=2, ensure_ascii=False, default=str)
        parts = [
            "# Calibration",
            self.guarantee(),
            tables.pipe_table(self.comparison.rows, self._header(), self._cells()),
            "\n".join(f"- {note}" for note in self.notes()),
            "![Tolerance against the risk of what would be chosen](calibration.png)",
            f"<details><summary>The run</summary>\n\n```json\n{run}\n```\n\n</details>",
        ]
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> str:
        """Return all figures and the loss of each example as JSON; what is not a number becomes null."""
        calibration = self.calibration
        ids = [example["id"] for example in self.reference.examples]
        document = {
            "schema_version": SCHEMA_VERSION,
            "run": self.run,
            "tolerance": calibration.tolerance,
            "error": calibration.error,
            "bound": calibration.bound,
            "loss": self.loss,
            "metric": self.metric,
            "examples": self.examples,
            "examples_needed": self.needed,
            "guarantee": self.guarantee(),
            "chosen": {"name": self.chosen.name, "strategy": self.chosen.strategy},
            "settings": list(self.settings),
            "reference": cost_document(self.comparison.rows[0]),
            "tests": [
                cost_document(row)
                | {
                    "mean_loss": test.mean_loss,
                    "risk_upper_bound": calibration.upper_bound(test),
                    "p_value": test.p_value,
                    "passed": test.passed,
                    "losses": dict(zip(ids, test.losses, strict=True)),
                }
                for row, test in self.tested
            ],
        }
        return json.dumps(plain(document), indent=2, ensure_ascii=False, default=str) + "\n"

    def print(self, console: Console) -> None:
        """Print the table, the notes and the guarantee on a terminal of at least 120 columns."""
        table = tables.terminal_table(f"Calibration on {self.examples} examples", self._header())
        chosen = self.chosen
        for row, cells in zip(self.comparison.rows, self._cells(), strict=True):
            table.add_row(Text(row.result.name), *cells, style="bold" if row.result is chosen else "")
        console.print(table)
        for note in self.notes():
            console.print(Text(note, style="dim"))
        console.print(Text(self.guarantee(), style="bold"))

    def write(self, folder: Path) -> None:
        """Write calibration.md, calibration.json and calibration.png, each whole or not at all.

        Args:
            folder: Made if missing; files of an earlier calibration are replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "calibration.json", self.to_json())
        replace_figure(folder / "calibration.png", calibration_figure(self))
        replace_file(folder / "calibration.md", self.to_markdown())

    def _header(self) -> list[str]:
        return ["Mean loss", f"Risk at most ({self.level})", "p-value", "Passed", *COSTS]

    def _cells(self) -> list[list[str]]:
        """Return a line for full depth and for each test, under the header."""
        lines = [["0", "0", tables.MISSING, "reference"]]
        for _, test in self.tested:
            upper = self.calibration.upper_bound(test)
            passed = "yes" if test.passed else "no"
            lines.append([f"{test.mean_loss:.4f}", f"{upper:.4f}", _p_value(test.p_value), passed])
        return [line + cost_cells(row) for row, line in zip(self.comparison.rows, lines, strict=True)]


def _p_value(value: float) -> str:
    """Return two significant digits; a power of ten where it is small."""
    return f"{value:.2g}" if value >= 1e-4 or not math.isfinite(value) else f"{value:.0e}"
