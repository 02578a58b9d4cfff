"""P-values for "the risk is larger than the tolerance", from the losses of a sample.

The risk of a setting is the expectation of its loss, from 0 to 1, on a new example. The p-values are valid for a
sample of any size n whose examples are independent draws from the distribution that the guarantee is for. Valid means:
where the risk is larger than the tolerance, P(p <= u) <= u for every u. Sources: Angelopoulos and others, Learn then
Test, arXiv 2110.01052, section 1.2 and proposition 1 (Hoeffding and Hoeffding-Bentkus); CALM, arXiv 2207.07061,
section 4.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from scipy.optimize import brentq
from scipy.stats import binom

from hsdlab.errors import UserError

PValue = Callable[[Sequence[float], float], float]
BoundName = Literal["hoeffding", "hoeffding_bentkus", "binomial"]


def hoeffding(losses: Sequence[float], tolerance: float) -> float:
    """Compute Hoeffding's p-value, exp(-2n · max(0, δ - mean)²).

    Args:
        losses: One for each example, from 0 to 1.
        tolerance: δ, between 0 and 1.

    Returns:
        The p-value, from 0 to 1; 1 where the mean loss is δ or more.

    Raises:
        UserError: No losses, or one outside 0 to 1.

    Example:
        >>> round(hoeffding([0.0] * 100, 0.1), 6) == round(math.exp(-2), 6)
        True
    """
    return math.exp(-2 * len(losses) * max(0.0, tolerance - _mean(losses)) ** 2)


def hoeffding_bentkus(losses: Sequence[float], tolerance: float) -> float:
    """Compute the smaller of Hoeffding's p-value, in its tight form, and Bentkus' p-value.

    min(exp(-n · h₁(min(mean, δ), δ)), e · P[Bin(n, δ) <= ⌈n · mean⌉]) with h₁ the relative entropy of two coins.

    Args:
        losses: One for each example, from 0 to 1.
        tolerance: δ, between 0 and 1.

    Returns:
        The p-value, from 0 to 1.

    Raises:
        UserError: No losses, or one outside 0 to 1.

    Example:
        >>> round(hoeffding_bentkus([0.0] * 10, 0.5), 9) == round(0.5**10, 9)
        True
    """
    number, mean = len(losses), _mean(losses)
    tight = math.exp(-number * _relative_entropy(min(mean, tolerance), tolerance))
    # A sum such as 3.0000000000000004 is 3 but for rounding, which must not add an example to the binomial's tail.
    bentkus = math.e * float(binom.cdf(math.ceil(round(number * mean, 9)), number, tolerance))
    return min(tight, bentkus, 1.0)


def binomial(losses: Sequence[float], tolerance: float) -> float:
    """Compute the exact p-value for losses that are 0 or 1, P[Bin(n, δ) <= number of ones].

    Args:
        losses: One for each example, 0 or 1.
        tolerance: δ, between 0 and 1.

    Returns:
        The p-value, from 0 to 1.

    Raises:
        UserError: No losses, or one that is neither 0 nor 1.

    Example:
        >>> binomial([0, 0, 1], 0.5)
        0.5
    """
    _mean(losses)
    if not set(losses) <= {0, 1}:
        raise UserError(
            "The exact binomial test is for losses of 0 or 1, and some are in between: use bound=hoeffding_bentkus."
        )
    return float(binom.cdf(sum(losses), len(losses), tolerance))


BOUNDS: dict[BoundName, PValue] = {
    "hoeffding": hoeffding,
    "hoeffding_bentkus": hoeffding_bentkus,
    "binomial": binomial,
}


def smallest_sample(bound: BoundName, tolerance: float, error: float) -> int:
    """Compute the least number of examples with which a setting can pass: one whose losses are all 0.

    Args:
        bound: Name of the p-value.
        tolerance: δ, between 0 and 1.
        error: ε, the probability that the guarantee fails, between 0 and 1.

    Returns:
        Number of examples, 1 or more.

    Example:
        >>> smallest_sample("hoeffding", 0.05, 0.05), smallest_sample("hoeffding_bentkus", 0.05, 0.05)
        (600, 59)
    """
    if bound == "hoeffding":
        number = math.log(1 / error) / (2 * tolerance**2)
    else:  # without a loss both others are (1 - δ)^n
        number = math.log(error) / math.log1p(-tolerance)
    return max(1, math.ceil(round(number, 9)))


def risk_upper_bound(bound: BoundName, losses: Sequence[float], error: float) -> float:
    """Compute the least tolerance at which the losses pass the test: a one-sided 1 - ε bound of the risk.

    Args:
        bound: Name of the p-value.
        losses: One for each example, from 0 to 1; 0 or 1 for "binomial".
        error: ε, between 0 and 1.

    Returns:
        From the mean of the losses to 1; 1 where no tolerance passes.

    Raises:
        UserError: No losses, or one that the bound is not for.
    """
    p_value, smallest, largest = BOUNDS[bound], max(_mean(losses), 1e-12), 1 - 1e-12
    if p_value(losses, largest) > error:
        return 1.0
    if p_value(losses, smallest) <= error:
        return smallest
    return float(brentq(lambda tolerance: p_value(losses, tolerance) - error, smallest, largest, xtol=1e-9))


def _mean(losses: Sequence[float]) -> float:
    """Return the mean of the losses. Refuse an empty sample, and losses outside 0 to 1."""
    if not losses:
        raise UserError("Got no losses: a test needs one example or more.")
    wrong = [loss for loss in losses if not 0 <= loss <= 1]
    if wrong:
        raise UserError(f"Got a loss of {wrong[0]}: losses are from 0 to 1.")
    return math.fsum(losses) / len(losses)


def _relative_entropy(a: float, b: float) -> float:
    """Return h₁(a, b) = a·ln(a/b) + (1-a)·ln((1-a)/(1-b)), in nats, with 0·ln 0 = 0; for b between 0 and 1."""
    return sum(p * math.log(p / q) for p, q in ((a, b), (1 - a, 1 - b)) if p > 0)
