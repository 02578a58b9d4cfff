"""What the tuner looks for, and in which order it decodes the settings that may be it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hsdlab.errors import UserError


@dataclass(frozen=True)
class Goal:
    """The fastest setting that keeps a share of the quality, or the best quality at a speed-up: one of the two.

    Args:
        max_loss: The largest share of full depth's quality that may be lost, from 0 up to 1.
        speedup: The least measured speed-up of a decode step, more than 1.

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
                "quality) and --speedup (the best quality at a speed-up of at least that much)."
            )
        if self.max_loss is not None and not 0 <= self.max_loss < 1:
            raise UserError(
                f"max-loss={self.max_loss:g}: expected a share of full depth's quality from 0 up to 1, such as 0.05."
            )
        if self.speedup is not None and not 1 < self.speedup < math.inf:
            raise UserError(f"speedup={self.speedup:g}: expected a number above 1, and finite, such as 1.6.")

    @property
    def least_ideal_speedup(self) -> float:
        """What a schedule has to allow to be worth a score."""
        return self.speedup or 1.0

    def met(self, share: float, speed_up: float) -> bool:
        """Tell whether a decoded setting is what is looked for.

        Args:
            share: Its quality, as a share of full depth's.
            speed_up: Of its decode steps, measured; not a number where there were none.
        """
        if self.max_loss is not None:
            return share >= 1 - self.max_loss - 1e-9  # 0.95 / 1 has to be a loss of at most 0.05
        return speed_up >= self.least_ideal_speedup

    def chosen(self, verdicts: Sequence[bool | None], shares: Sequence[float]) -> int | None:
        """Choose among settings, slowest first.

        Args:
            verdicts: Whether each meets the goal; None where it was not decoded.
            shares: The quality of each.

        Returns:
            Of those that meet it the last, which is the fastest, or the one of the best quality; None if there is none.
        """
        met = [place for place, verdict in enumerate(verdicts) if verdict]
        return max(met, key=lambda place: place if self.max_loss is not None else shares[place], default=None)

    def next_to_decode(self, verdicts: Sequence[bool | None]) -> int | None:
        """Choose the setting to decode next: first by bisection, as if settings met the goal from one end on.

        When the border between those that do and those that do not is found, faster settings beyond it are decoded,
        nearest first: quality need not fall from each setting to the next, as the score does.

        Args:
            verdicts: Of the settings, slowest first; None where one was not decoded.

        Returns:
            Its place; None if no other setting could change what is chosen.
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
