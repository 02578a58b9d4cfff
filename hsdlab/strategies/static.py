"""StaticDepth: the same layers in every decode step, to which a schedule has to be compared."""

from typing import Literal, Self, cast, get_args

from hsdlab.errors import UserError
from hsdlab.strategies.schedule import Layers, ScheduledStrategy, Trial, check_layers

Keep = Literal["unified", "bottom", "top"]


class StaticDepth(ScheduledStrategy):
    """Run the same layers in every decode step; the prompt runs at full depth.

    ``unified`` is Unified Layer Skipping (Liu et al. 2024, arXiv 2404.06954): the first layer, the last, and every
    ⌊L / (number - 1)⌋-th between them, from the bottom, until there are ``number``. ``bottom`` exits after the first
    ``number`` layers, a static early exit. ``top`` runs the last ``number`` layers. For every k-th layer, use
    ``HSD(k - 1, 0, 0)``.

    Args:
        number: How many layers run, at least 1 and with ``unified`` at least 2; None is all of the model's layers.
            "auto" is half of them, rounded down, as HSD's default ``max_exit``, but at least 2.
        keep: Which layers run: ``unified``, ``bottom`` or ``top``.

    Raises:
        UserError: ``number`` is too small, or ``keep`` is unknown.

    Example:
        >>> StaticDepth(8).layers_at(step=0, num_layers=24, max_steps=10)
        (0, 3, 6, 9, 12, 15, 18, 23)
    """

    def __init__(self, number: Layers = "auto", keep: Keep = "unified") -> None:
        if keep not in get_args(Keep):
            raise UserError(f"StaticDepth: keep={keep!r}; expected one of {', '.join(get_args(Keep))}.")
        least = 2 if keep == "unified" else 1
        check_layers("StaticDepth", "number", number, least, also=["auto", None])
        self.number = number
        self.keep = keep

    def layers_at(self, step: int, num_layers: int, max_steps: int) -> tuple[int, ...]:
        """Give the kept layers, sorted."""
        number = self._number_on(num_layers)
        if number > num_layers:
            raise UserError(f"StaticDepth: number={number} is more than the model's {num_layers} layers.")
        if self.keep == "bottom" or number == num_layers:
            return tuple(range(number))
        if self.keep == "top":
            return tuple(range(num_layers - number, num_layers))
        between = range(num_layers // (number - 1), num_layers - 1, num_layers // (number - 1))
        return (0, *between[: number - 2], num_layers - 1)

    def _number_on(self, num_layers: int) -> int:
        if self.number == "auto":
            return min(max(num_layers // 2, 2), num_layers)
        return num_layers if self.number is None else self.number

    @classmethod
    def propose(cls, trial: Trial, num_layers: int, max_steps: int) -> Self:
        """Propose any number of layers, kept in any way."""
        keep = cast(Keep, trial.suggest_categorical("keep", get_args(Keep)))
        return cls(trial.suggest_int("number", 2 if keep == "unified" else 1, num_layers), keep)

    def resolved(self, num_layers: int) -> Self:
        """Fill in ``number``."""
        return self._with(number=self._number_on(num_layers))

    def never_skip(self) -> "StaticDepth":
        """Set the number to all layers."""
        return StaticDepth(number=None, keep=self.keep)
