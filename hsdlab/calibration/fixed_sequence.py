"""Fixed-sequence testing: go through settings, safest first, as long as each is proven within the tolerance."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from hsdlab.calibration.bounds import BOUNDS, BoundName

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class SettingTest(Generic[Setting]):
    """The test of one setting: its losses, and the p-value for "its risk is larger than the tolerance"."""

    setting: Setting
    losses: tuple[float, ...]
    p_value: float
    passed: bool

    @property
    def mean_loss(self) -> float:
        """The sample's mean loss, the estimate of the risk."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class Calibration(Generic[Setting]):
    """What fixed-sequence testing found.

    With probability 1 - `error` over the draw of the sample, the risk of `chosen` is at most `tolerance`.

    Attributes:
        chosen: The last setting that passed before the first that did not; None if the first one did not: then only
            the full model is safe.
        tests: Of the settings in order, up to the first that did not pass.
    """

    chosen: Setting | None
    tests: tuple[SettingTest[Setting], ...]
    tolerance: float
    error: float
    bound: BoundName


def fixed_sequence_test(
    settings: Iterable[tuple[Setting, Sequence[float]]],
    *,
    tolerance: float,
    error: float,
    bound: BoundName = "hoeffding_bentkus",
) -> Calibration[Setting]:
    """Test settings one after the other, each at the full level; stop at the first that does not pass.

    As the order is fixed before the losses are seen, the chance that any setting passes whose risk is larger than the
    tolerance is at most `error`, without a correction for their number (Learn then Test, arXiv 2110.01052,
    section 2.2; CALM, section 4.2).

    Args:
        settings: Each with its losses, from 0 to 1; the safest first. A generator is asked for no setting after the
            first that does not pass, so what it computes is not computed in vain.
        tolerance: δ, the risk that is accepted, between 0 and 1.
        error: ε, the chance that the guarantee fails, between 0 and 1.
        bound: Name of the p-value.

    Raises:
        ValueError: A number out of its range, an unknown bound, or losses that the bound is not for.

    Example:
        >>> safe, risky = ("safe", [0.0] * 100), ("risky", [0.0, 1.0] * 50)
        >>> fixed_sequence_test([safe, risky], tolerance=0.05, error=0.05).chosen
        'safe'
    """
    check_levels(tolerance, error, bound)
    tests: list[SettingTest[Setting]] = []
    for setting, losses in settings:
        p_value = BOUNDS[bound](losses, tolerance)
        tests.append(SettingTest(setting, tuple(losses), p_value, passed=p_value <= error))
        if not tests[-1].passed:
            break
    passed = [test.setting for test in tests if test.passed]
    return Calibration(passed[-1] if passed else None, tuple(tests), tolerance, error, bound)


def check_levels(tolerance: float, error: float, bound: str) -> None:
    """Refuse levels outside 0 … 1 and unknown bounds.

    Raises:
        ValueError: In the words of the parameters.
    """
    for name, value in (("tolerance", tolerance), ("error", error)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value}: expected a number between 0 and 1, such as 0.05.")
    if bound not in BOUNDS:
        raise ValueError(f"bound={bound!r}: expected one of {', '.join(BOUNDS)}.")
