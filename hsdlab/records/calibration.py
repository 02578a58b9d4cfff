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
        losses: One loss per example, from 0 to 1, in the order of `example_ids`.
        p_value: Of the null hypothesis that the setting's risk is larger than the tolerance.
        risk_upper_bound: Upper bound of the risk at confidence level 1 - ε: the smallest tolerance at which the setting
            would pass.
        passed: Whether the p-value is at most the error level ε.
    """

    losses: tuple[float, ...]
    p_value: float
    risk_upper_bound: float
    passed: bool

    @property
    def mean_loss(self) -> float:
        """The mean loss over the calibration examples, from 0 to 1: the estimate of the risk."""
        return math.fsum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class CalibrationResult(Document):
    """What Learn then Test found (CALM, arXiv 2207.07061, section 4); calibration.json.

    Attributes:
        run: Versions, commit, configuration and machine.
        tolerance: δ, the largest risk that is allowed, from 0 to 1.
        error: ε, the probability with which the guarantee may fail.
        bound: Name of the p-value: "hoeffding", "hoeffding_bentkus" or "binomial".
        loss: "risk" or "textual", the two losses of CALM.
        metric: The metric from which the loss is computed, such as "rougeL".
        settings: Names of all settings in the list, in the order of testing, also of those that were not tested.
        example_ids: The ids of the calibration examples.
        examples_needed: The number of examples with which a setting without any loss would pass.
        tests: One per tested setting, in order, up to the first that did not pass; at least one.
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
        """The last test that passed, as did all before it; None if the first one did not pass."""
        passed = [test for test in self.tests if test.passed]
        return passed[-1] if passed else None

    @property
    def chosen(self) -> ComparisonRow:
        """The setting that has the guarantee; full depth where no test passed."""
        return self.comparison.rows[sum(test.passed for test in self.tests)]

    @property
    def tested(self) -> list[tuple[ComparisonRow, CalibrationTest]]:
        """Each test with its row of the comparison."""
        return list(zip(self.comparison.rows[1:], self.tests, strict=True))
