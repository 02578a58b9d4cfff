"""What docs/results holds of early exit: how it gets there, its rows, its times by batch size, and its thresholds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from benchmarks import results_data
from benchmarks.results_data import read, short, sides_of
from hsdlab.records.bench import BenchResult, BenchSide
from hsdlab.records.calibration import CalibrationResult
from hsdlab.records.comparison import Comparison, ComparisonRow
from hsdlab.records.document import Document
from hsdlab.records.provenance import RunInfo
from hsdlab.reporting import calibration

FULL_DEPTH = "FullDepth()"
SCHEDULES = ("HSD(2, 0, 8)", "HSD(3, 0, 4)", "SkipDecode(10, 20)")
"""The rows of the model trained to skip that stand beside the exits."""


@dataclass(frozen=True)
class TestedSetting:
    """One setting that `calibrate` tested.

    Attributes:
        name: The strategy.
        mean_loss: Over the calibration examples, from 0 to 1.
        risk_upper_bound: Upper bound of the risk at confidence level 1 - ε.
        passed: Whether the test passed.
        average_layers: Executed layers per decode step.
    """

    name: str
    mean_loss: float
    risk_upper_bound: float
    passed: bool
    average_layers: float


@dataclass(frozen=True)
class ChosenThreshold(Document):
    """A calibration without the losses of its examples; docs/results/*_exits_calibration_*.json.

    Attributes:
        run: Versions, commit, configuration and machine.
        tolerance: δ, the largest risk that is allowed.
        error: ε, the probability with which the guarantee may fail.
        loss: "risk" or "textual".
        metric: The metric from which the loss is computed.
        examples: Number of calibration examples.
        settings: How many settings the list had.
        tests: One for each tested setting, in order, up to the first that did not pass.
    """

    kind: ClassVar[str] = "chosen_threshold"

    run: RunInfo
    tolerance: float
    error: float
    loss: str
    metric: str
    examples: int
    settings: int
    tests: tuple[TestedSetting, ...]

    @classmethod
    def of(cls, made: CalibrationResult) -> ChosenThreshold:
        """Keep of a calibration what the page shows."""
        tests = tuple(
            TestedSetting(row.name, test.mean_loss, test.risk_upper_bound, test.passed, row.average_layers)
            for row, test in made.tested
        )
        return cls(
            run=made.run,
            tolerance=made.tolerance,
            error=made.error,
            loss=made.loss,
            metric=made.metric,
            examples=len(made.example_ids),
            settings=len(made.settings),
            tests=tests,
        )

    @property
    def chosen(self) -> TestedSetting | None:
        """The last setting that passed; None where the first one did not."""
        return next((test for test in reversed(self.tests) if test.passed), None)


KINDS: dict[str, type[Document]] = {
    "exits_greedy": Comparison,
    "exits_seed[0-9]_greedy": Comparison,
    "exits_bench": BenchResult,
    "exits_calibration_*": ChosenThreshold,
    "exits_and_schedules_greedy": Comparison,
    "exits_and_schedules_bench": BenchResult,
    "exits_and_schedules_calibration_*": ChosenThreshold,
}
"""The files of docs/early_exit.md: what one holds, by the end of its name."""


def collect() -> None:
    """Take over the results of runs, of a calibration without the losses of its examples, and what `inspect` drew."""
    results_data.collect()
    for file in sorted(results_data.RUNS.glob(f"*_exits*_calibration_*/{calibration.FILE}")):
        made = ChosenThreshold.of(CalibrationResult.read(file))
        made.write(results_data.RESULTS / f"{file.parent.name}.json")
    for picture in sorted(results_data.RUNS.glob("*_inspect_after/reliability.png")):
        data = picture.parent.name.removesuffix("_inspect_after")
        with Image.open(picture) as drawn:  # in 64 colours, a quarter of the size
            drawn.convert("RGB").quantize(64).save(results_data.RESULTS / f"{data}_reliability.png", optimize=True)


def named(strategy: str) -> str:
    """Return a strategy's name without keywords and the paths of trained files: "CALM(0.9, token_counts)"."""
    name = re.sub(r"(, )?[\w./-]+\.safetensors(?(1)|(, )?)", "", short(strategy))
    return re.sub(r"[\w./-]+/(\w+)\.jsonl", r"\1", name).replace("OracleExit(law)", "OracleExit()")


def rows(name: str) -> dict[str, ComparisonRow]:
    """Return the rows of a comparison by their names on the page; none where it was not run."""
    made = read(name, Comparison)
    return {} if made is None else {named(row.name): row for row in made.rows}


def times(data: str, model: str = "exits") -> dict[int, dict[str, BenchSide]]:
    """Return the sides of the bench of a set's model with exits: batch size, then the name on the page."""
    made = read(f"{data}_{model}_bench", BenchResult)
    cells = () if made is None else made.cells
    return {cell.batch_size: {named(name): side for name, side in sides_of(cell).items()} for cell in cells}


def thresholds(data: str, model: str = "exits") -> dict[str, ChosenThreshold]:
    """Return what `calibrate` chose for a set's model: measure -> calibration."""
    start = f"{data}_{model}_calibration_"
    files = sorted(results_data.RESULTS.glob(f"{start}*.json"))
    return {file.stem.removeprefix(start): ChosenThreshold.read(file) for file in files}
