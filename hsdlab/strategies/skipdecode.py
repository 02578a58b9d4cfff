"""SkipDecode (Del Corro et al. 2023, arXiv 2307.02628)."""

from typing import Self

from hsdlab.errors import UserError
from hsdlab.strategies.schedule import (
    Layers,
    ScheduledStrategy,
    Trial,
    budget,
    check_budget,
    check_fits,
    check_layers,
    propose_budget,
)


class SkipDecode(ScheduledStrategy):
    """Skip the lower and middle layers: a warm-up at the bottom runs, and a falling number of layers at the top.

    Executed in step t: {0 … warmup-1} ∪ {L-l(t) … L-1}, with l(t) falling from ``max_exit`` to ``min_exit`` over T =
    ``max_new_tokens`` (:func:`budget`). All sequences of a batch run the same layers, and the sets only shrink, so no
    key or value is ever missing.

    Differs from the paper: the paper's text that we have lost its formula; the form is recovered from the averages in
    HSD's tables (docs/reconstruction.md). The prompt runs at full depth.

    Args:
        min_exit: Layers scheduled at the end; None for all of the model's. "auto" is 10/36 of them, rounded, and at
            most ``max_exit``.
        max_exit: Layers scheduled at the start; None for all of the model's. "auto" is 20/36 of them, rounded, and
            at least ``min_exit``. The defaults are the first setting of the HSD paper's tables (arXiv 2403.14919),
            (10, 20) on the 36 layers of GPT-2 Large, in proportion to the model's layers.
        warmup: Layers that always run at the bottom, at most all of the model's.
        decay: How the budget falls; ``linear`` is the paper's.

    Example:
        >>> SkipDecode(min_exit=2, max_exit=4).layers_at(step=0, num_layers=8, max_steps=10)
        (0, 4, 5, 6, 7)
    """

    def __init__(
        self, min_exit: Layers = "auto", max_exit: Layers = "auto", warmup: int = 1, decay: str = "linear"
    ) -> None:
        check_layers("SkipDecode", "min_exit", min_exit, also=["auto", None])
        check_layers("SkipDecode", "max_exit", max_exit, also=["auto", None])
        check_layers("SkipDecode", "warmup", warmup)
        check_budget("SkipDecode", min_exit, max_exit, decay)
        self.min_exit = min_exit
        self.max_exit = max_exit
        self.warmup = warmup
        self.decay = decay

    def exits_on(self, num_layers: int) -> tuple[int, int]:
        """``min_exit`` and ``max_exit`` on a model of L layers.

        Example:
            >>> SkipDecode().exits_on(num_layers=36), SkipDecode().exits_on(num_layers=12)
            ((10, 20), (3, 7))
        """
        min_exit = _number(self.min_exit, 10, num_layers)
        max_exit = _number(self.max_exit, 20, num_layers)
        if self.min_exit == "auto":
            return min(min_exit, max_exit), max_exit
        return min_exit, max(min_exit, max_exit) if self.max_exit == "auto" else max_exit

    def layers_at(self, step: int, num_layers: int, max_steps: int) -> tuple[int, ...]:
        """The warm-up layers and the top l(t) layers, sorted."""
        min_exit, max_exit = self.exits_on(num_layers)
        check_fits("SkipDecode", min_exit, max_exit, num_layers)
        if self.warmup > num_layers:
            raise UserError(f"SkipDecode: warmup={self.warmup} is beyond this model's {num_layers} layers.")
        scheduled = budget(step, max_steps, min_exit, max_exit, self.decay)
        return tuple(sorted({*range(self.warmup), *range(num_layers - scheduled, num_layers)}))

    @classmethod
    def propose(cls, trial: Trial, num_layers: int, max_steps: int) -> Self:
        """Any budget; a warm-up of up to a quarter of the layers."""
        min_exit, max_exit, decay = propose_budget(trial, num_layers)
        return cls(min_exit, max_exit, trial.suggest_int("warmup", 0, max(1, num_layers // 4)), decay)

    def never_skip(self) -> "SkipDecode":
        """A budget of all layers."""
        return SkipDecode(min_exit=None, max_exit=None, warmup=self.warmup, decay=self.decay)


def _number(layers: Layers, of_36: int, num_layers: int) -> int:
    """A number of layers, of a model of L layers; "auto" stands for the share that ``of_36`` layers are of 36."""
    if layers == "auto":
        return round(of_36 * num_layers / 36)
    return num_layers if layers is None else layers
