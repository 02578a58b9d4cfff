"""CalibrationResult: which settings were tested, and which one carries the guarantee."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from hsdlab.records.comparison import Comparison, ComparisonRow
from hsdlab.records.document import Document
from hsdlab.records.provenance import RunInfo


@dataclass(frozen=True)
class CalibrationTest:
    """The test of one setting.

    Attributes:
        losses: One of each example, 0 to 1, in the order of `example_ids`.
        p_value: For "its risk is larger than the tolerance".
        risk_upper_bound: The least tolerance at which it would pass: a bound of its risk, at level 1 - ε.
        passed: Whether its p-value is at most the error level.
    """

    losses: tuple[float, ...]
    p_value: float
    risk_upper_bound: float
    passed: bool

    @property
    def mean_loss(self) -> float:
        """The sample's mean loss, the estimate of the risk."""
        return math.fsum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class CalibrationResult(Document):
    """What Learn then Test found (CALM, arXiv 2207.07061, section 4); calibration.json.

    Attributes:
        run: What it was made with.
        tolerance: δ.
        error: ε.
        bound: Name of the p-value: "hoeffding", "hoeffding_bentkus" or "binomial".
        loss: "risk" or "textual".
        metric: The loss is made of it.
        settings: Names of all settings in the list, those that were not tested too.
        example_ids: Of the calibration examples.
        examples_needed: With how many a setting without any loss passes.
        tests: Of the settings in order, up to the first that did not pass; at least one.
        comparison: The costs of full depth and of all tested settings, in this order.
    """

    kind: ClassVar[str] = "calibration"

    run: RunInfo
    tolerance: float
    error: float
    bound: str
    loss: str
    metric: str
    settings: tuple[str, ...]
    example_ids: tuple[str, ...]
    examples_needed: int
    tests: tuple[CalibrationTest, ...]
    comparison: Comparison

    @property
    def chosen_test(self) -> CalibrationTest | None:
        """The last test that passed, all before it having passed too; None if the first one did not."""
        passed = [test for test in self.tests if test.passed]
        return passed[-1] if passed else None

    @property
    def chosen(self) -> ComparisonRow:
        """The setting that the guarantee is for; full depth where none passed."""
        return self.comparison.rows[sum(test.passed for test in self.tests)]

    @property
    def tested(self) -> list[tuple[ComparisonRow, CalibrationTest]]:
        """Each test with its row of the comparison."""
        return list(zip(self.comparison.rows[1:], self.tests, strict=True))
