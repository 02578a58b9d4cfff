"""What `tune` looks for, and in which order it decodes the settings that may be the one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hsdlab.errors import UserError


@dataclass(frozen=True)
class Goal:
    """One of two goals: the fastest setting within a loss of quality, or the best quality at a speed-up.

    Args:
        max_loss: The largest share of full depth's quality that may be lost, from 0 to below 1. None with `speedup`.
        speedup: The least measured speed-up of a decode step, more than 1. None with `max_loss`.

    Raises:
        UserError: Both, neither, or one out of its range.
    """

    max_loss: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        if (self.max_loss is None) == (self.speedup is None):
            given = "neither" if self.max_loss is None else f"max-loss={self.max_loss:g} and speedup={self.speedup:g}"
            raise UserError(
                f"Got {given}; expected one of --max-loss (the fastest setting that loses at most that share of the "
                "quality) and --speedup (the best quality at a speed-up of at least that much), or --lossless (the "
                "fastest draft of Verified, whose text is that of full depth)."
            )
        if self.max_loss is not None and not 0 <= self.max_loss < 1:
            raise UserError(
                f"max-loss={self.max_loss:g}: expected a share of full depth's quality from 0 up to 1, such as 0.05."
            )
        if self.speedup is not None and not 1 < self.speedup < math.inf:
            raise UserError(f"speedup={self.speedup:g}: expected a number above 1, and finite, such as 1.6.")

    @property
    def least_ideal_speedup(self) -> float:
        """The ideal speed-up that a schedule needs to be scored; 1 under `max_loss`."""
        return self.speedup or 1.0

    def met(self, share: float, speed_up: float) -> bool:
        """Tell whether a decoded setting meets the goal.

        Args:
            share: Its quality as a share of full depth's.
            speed_up: Measured speed-up of its decode steps; NaN where there were none.

        Returns:
            Whether it loses at most `max_loss`, or is at least `speedup` times as fast.
        """
        if self.max_loss is not None:
            return share >= 1 - self.max_loss - 1e-9  # a share of 0.95 is a loss of 0.05, whatever the rounding
        return speed_up >= self.least_ideal_speedup

    def chosen(self, verdicts: Sequence[bool | None], shares: Sequence[float]) -> int | None:
        """Choose among settings, slowest first.

        Args:
            verdicts: Whether each setting meets the goal; None where it was not decoded.
            shares: The quality of each setting as a share of full depth's.

        Returns:
            Index of a setting that meets the goal. Under `max_loss` it is the last one, which is the fastest; under
            `speedup` it is the one of the best quality. None if no setting meets the goal.
        """
        met = [place for place, verdict in enumerate(verdicts) if verdict]
        return max(met, key=lambda place: place if self.max_loss is not None else shares[place], default=None)

    def next_to_decode(self, verdicts: Sequence[bool | None]) -> int | None:
        """Choose the setting to decode next.

        First comes a bisection, as if all settings on one side of a border met the goal. Once the border is found,
        faster settings beyond it are decoded, nearest first. The score gets worse from each setting to the next, but
        the quality need not.

        Args:
            verdicts: Whether each setting, slowest first, meets the goal; None where it was not decoded.

        Returns:
            Index of the setting; None if no other setting could change what is chosen.
        """
        places, count = range(len(verdicts)), len(verdicts)
        if self.max_loss is not None:  # met at the slow end
            low = max((place for place in places if verdicts[place]), default=-1)
            high = next((place for place in places[low + 1 :] if verdicts[place] is False), count)
        else:  # met at the fast end
            high = next((place for place in places if verdicts[place]), count)
            low = max((place for place in places[:high] if verdicts[place] is False), default=-1)
        between = places[low + 1 : high]
        if between:
            return between[len(between) // 2]
        return next((place for place in places[high:] if verdicts[place] is None), None)
