"""Fixed-sequence testing: test settings, safest first, until one is not proven to be within the tolerance."""

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
        setting: Whatever the caller passed as the setting.
        losses: One for each example, 0 to 1.
        p_value: For "its risk is larger than the tolerance", from 0 to 1.
        passed: Whether the p-value is at most ε.
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
        tests: One for each setting in order, up to the first that did not pass.
        tolerance: δ, the accepted risk, between 0 and 1.
        error: ε, the probability that the guarantee fails, between 0 and 1.
        bound: Name of the p-value.
    """

    tests: tuple[SettingTest[Setting], ...]
    tolerance: float
    error: float
    bound: BoundName

    @property
    def chosen_test(self) -> SettingTest[Setting] | None:
        """The last test that passed, as all before it did; None if the first one did not pass."""
        passed = [test for test in self.tests if test.passed]
        return passed[-1] if passed else None

    @property
    def chosen(self) -> Setting | None:
        """The setting of `chosen_test`. None if the first one did not pass: then only full depth is safe."""
        return None if self.chosen_test is None else self.chosen_test.setting

    def upper_bound(self, test: SettingTest[Setting]) -> float:
        """Compute the least tolerance at which a setting would pass.

        Args:
            test: One of `tests`.

        Returns:
            A one-sided bound of the setting's risk at level 1 - `error`, from its mean loss to 1.
        """
        return risk_upper_bound(self.bound, test.losses, self.error)


def fixed_sequence(
    settings: Iterable[tuple[Setting, Sequence[float]]],
    *,
    tolerance: float,
    error: float,
    bound: BoundName = "hoeffding_bentkus",
) -> Iterator[Calibration[Setting]]:
    """Test settings one after the other, each at the full level. End after the first that does not pass.

    The order is fixed before the losses are seen. So the probability that a setting passes whose risk is larger than
    the tolerance is at most `error`, without a correction for the number of settings (Learn then Test, arXiv
    2110.01052, section 2.2; CALM, section 4.2). The guarantee also holds for a caller who stops earlier.

    Args:
        settings: Pairs of a setting and its losses, one for each example, from 0 to 1; the safest setting first. A
            generator is not advanced after the first setting that does not pass, so it computes nothing in vain.
        tolerance: δ, the accepted risk, between 0 and 1.
        error: ε, the probability that the guarantee fails, between 0 and 1.
        bound: Name of the p-value.

    Yields:
        After each test, the calibration with all tests until then.

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
    """Run `fixed_sequence` to its end.

    Args:
        settings: As for `fixed_sequence`.
        tolerance: δ, the accepted risk, between 0 and 1.
        error: ε, the probability that the guarantee fails, between 0 and 1.
        bound: Name of the p-value.

    Returns:
        The calibration with all tests; with none if there is no setting.

    Raises:
        UserError: See `fixed_sequence`.

    Example:
        >>> safe, risky = ("safe", [0.0] * 100), ("risky", [0.0, 1.0] * 50)
        >>> fixed_sequence_test([safe, risky], tolerance=0.05, error=0.05).chosen
        'safe'
    """
    start: Calibration[Setting] = Calibration((), tolerance, error, bound)
    return [start, *fixed_sequence(settings, tolerance=tolerance, error=error, bound=bound)][-1]


def check_levels(tolerance: float, error: float, bound: str) -> None:
    """Refuse levels out of range, and unknown bounds.

    Args:
        tolerance: δ. It must be between 0 and 1, both excluded.
        error: ε. It must be between 0 and 1, both excluded.
        bound: It must be one of `BOUNDS`.

    Raises:
        UserError: One of them is not; the message names it.
    """
    for name, value in (("tolerance", tolerance), ("error", error)):
        if not 0 < value < 1:
            raise UserError(f"{name}={value}: expected a number between 0 and 1, such as 0.05.")
    if bound not in BOUNDS:
        raise UserError(f"bound={bound!r}: expected one of {', '.join(BOUNDS)}.")
