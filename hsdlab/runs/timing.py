"""Interleaved measurement: several sides in turn on a machine that drifts, medians and quartiles, no means.

A shared machine speeds up and slows down by some percent within minutes. So the sides take turns on each
case, in an order shuffled anew each time, and two sides are compared by the ratio within each round, never by
figures from different rounds.
"""

import random
import statistics
from collections.abc import Callable, Sequence

from hsdlab.decoding.timing import Timing
from hsdlab.errors import UserError
from hsdlab.records.bench import Spread

Side = Callable[[int], Timing]
"""Runs one case, given its index, and tells how long it took."""


def interleave(
    sides: Sequence[Side],
    *,
    cases: int,
    rounds: int,
    seed: int = 0,
    after_run: Callable[[], object] = lambda: None,
) -> list[list[list[Timing]]]:
    """Run every side on every case, ``rounds`` times over.

    Call it once for warm-up and drop what it returns, then once more.

    Args:
        sides: The sides to compare.
        cases: Number of cases. A round runs them in order, each on all sides before the next.
        rounds: Number of rounds.
        seed: Seed of the order in which the sides run a case. It is drawn again for each case of each round.
        after_run: Called after each run, outside of the timed part.

    Returns:
        Timings as nested lists [sides][rounds][cases].
    """
    order = random.Random(seed)
    timings: list[list[list[Timing]]] = [[[] for _ in range(rounds)] for _ in sides]
    for round_index in range(rounds):
        for case in range(cases):
            for index in order.sample(range(len(sides)), len(sides)):
                timings[index][round_index].append(sides[index](case))
                after_run()
    return timings


def spread(values: Sequence[float]) -> Spread:
    """Compute the median and the quartiles.

    Args:
        values: One or more, in any order and unit.

    Returns:
        Median and quartiles, linear between values (NumPy's default). Of one value, all three are that value.

    Raises:
        UserError: There are no values.

    Example:
        >>> spread([4.0, 1.0, 3.0, 2.0])
        Spread(median=2.5, low=1.75, high=3.25)
    """
    if not values:
        raise UserError("Got no values; expected at least one.")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratio_spread(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Compute the spread of the ratios within each round, from which the machine's drift cancels.

    Args:
        numerators: One value per round.
        denominators: One value per round, of the same rounds.

    Returns:
        Median and quartiles of the ratios.

    Example:
        >>> ratio_spread([2.0, 20.0, 6.0], [1.0, 10.0, 2.0])  # the second round was ten times slower
        Spread(median=2.0, low=2.0, high=2.5)
    """
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])
