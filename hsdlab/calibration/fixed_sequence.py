"""Fixed-sequence testing: go through settings, safest first, as long as each is proven within the tolerance."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from hsdlab.calibration.bounds import BOUNDS, BoundName, risk_upper_bound
from hsdlab.errors import UserError

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class SettingTest(Generic[Setting]):
    """The test of one setting.

    Attributes:
        setting: What was tested.
        losses: One of each example, 0 to 1.
        p_value: For "its risk is larger than the tolerance".
        passed: Whether its p-value is at most the error level.
    """

    setting: Setting
    losses: tuple[float, ...]
    p_value: float
    passed: bool

    @property
    def mean_loss(self) -> float:
        """The sample's mean loss, the estimate of the risk."""
        return math.fsum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class Calibration(Generic[Setting]):
    """What fixed-sequence testing found.

    With probability 1 - `error` over the draw of the sample, the risk of `chosen` is at most `tolerance`.

    Attributes:
        tests: Of the settings in order, up to the first that did not pass.
        tolerance: δ.
        error: ε.
        bound: Name of the p-value.
    """

    tests: tuple[SettingTest[Setting], ...]
    tolerance: float
    error: float
    bound: BoundName

    @property
    def chosen_test(self) -> SettingTest[Setting] | None:
        """The last test that passed, all before it having passed too; None if the first one did not."""
        passed = [test for test in self.tests if test.passed]
        return passed[-1] if passed else None

    @property
    def chosen(self) -> Setting | None:
        """The setting of `chosen_test`; None if the first one did not pass: then only the full model is safe."""
        return None if self.chosen_test is None else self.chosen_test.setting

    def upper_bound(self, test: SettingTest[Setting]) -> float:
        """Return the least tolerance at which a setting would pass: a bound of its risk, at level 1 - `error`."""
        return risk_upper_bound(self.bound, test.losses, self.error)


def fixed_sequence(
    settings: Iterable[tuple[Setting, Sequence[float]]],
    *,
    tolerance: float,
    error: float,
    bound: BoundName = "hoeffding_bentkus",
) -> Iterator[Calibration[Setting]]:
    """Test settings one after the other, each at the full level; end after the first that does not pass.

    As the order is fixed before the losses are seen, the chance that any setting passes whose risk is larger than the
    tolerance is at most `error`, without a correction for their number (Learn then Test, arXiv 2110.01052,
    section 2.2; CALM, section 4.2). So who stops earlier may keep what has passed until then.

    Args:
        settings: Each with its losses, from 0 to 1; the safest first. A generator is asked for no setting after the
            first that does not pass, so what it computes is not computed in vain.
        tolerance: δ, the risk that is accepted, between 0 and 1.
        error: ε, the chance that the guarantee fails, between 0 and 1.
        bound: Name of the p-value.

    Yields:
        After each test, all tests until then.

    Raises:
        UserError: A number out of its range, an unknown bound, or losses that the bound is not for.
    """
    check_levels(tolerance, error, bound)
    tests: list[SettingTest[Setting]] = []
    for setting, losses in settings:
        p_value = BOUNDS[bound](losses, tolerance)
        tests.append(SettingTest(setting, tuple(losses), p_value, passed=p_value <= error))
        yield Calibration(tuple(tests), tolerance, error, bound)
        if not tests[-1].passed:
            return


def fixed_sequence_test(
    settings: Iterable[tuple[Setting, Sequence[float]]],
    *,
    tolerance: float,
    error: float,
    bound: BoundName = "hoeffding_bentkus",
) -> Calibration[Setting]:
    """Return the end of `fixed_sequence`, which has the same arguments and errors.

    Example:
        >>> safe, risky = ("safe", [0.0] * 100), ("risky", [0.0, 1.0] * 50)
        >>> fixed_sequence_test([safe, risky], tolerance=0.05, error=0.05).chosen
        'safe'
    """
    start: Calibration[Setting] = Calibration((), tolerance, error, bound)
    return [start, *fixed_sequence(settings, tolerance=tolerance, error=error, bound=bound)][-1]


def check_levels(tolerance: float, error: float, bound: str) -> None:
    """Refuse levels outside 0 … 1 and unknown bounds.

    Raises:
        UserError: In the words of the parameters.
    """
    for name, value in (("tolerance", tolerance), ("error", error)):
        if not 0 < value < 1:
            raise UserError(f"{name}={value}: expected a number between 0 and 1, such as 0.05.")
    if bound not in BOUNDS:
        raise UserError(f"bound={bound!r}: expected one of {', '.join(BOUNDS)}.")
