"""SkipDecode (Del Corro et al. 2023, arXiv 2307.02628)."""

from typing import Self

from hsdlab.errors import UserError
from hsdlab.strategies.schedule import ScheduledStrategy, Trial, budget, check_budget, check_fits, propose_budget


class SkipDecode(ScheduledStrategy):
    """Pass by the lower and middle layers; a falling number of layers at the top runs, after a warm-up at the bottom.

    Executed in step t: {0 … warmup-1} ∪ {L-l(t) … L-1}, with l(t) falling from ``max_exit`` to ``min_exit`` over T =
    ``max_new_tokens`` (:func:`budget`). All rows of a batch run the same layers, and the sets only shrink, so no key
    or value is ever missing.

    Differs from the paper: the paper's text that we have lost its formula; the form is recovered from the averages in
    HSD's tables (docs/reconstruction.md). The prompt runs at full depth.

    Args:
        min_exit: Layers scheduled at the end; None for all of the model's.
        max_exit: Layers scheduled at the start; None for all of the model's. The defaults are the first setting of
            HSD's tables.
        warmup: Layers that always run at the bottom.
        decay: How the budget falls; ``linear`` is the paper's.

    Example:
        >>> SkipDecode(min_exit=2, max_exit=4).layers_at(step=0, num_layers=8, max_steps=10)
        (0, 4, 5, 6, 7)
    """

    def __init__(
        self, min_exit: int | None = 10, max_exit: int | None = 20, warmup: int = 1, decay: str = "linear"
    ) -> None:
        check_budget("SkipDecode", min_exit, max_exit, decay)
        if warmup < 0:
            raise UserError(f"SkipDecode: warmup={warmup} must not be negative.")
        self.min_exit = min_exit
        self.max_exit = max_exit
        self.warmup = warmup
        self.decay = decay

    def layers_at(self, step: int, num_layers: int, max_steps: int) -> tuple[int, ...]:
        """The warm-up layers and the top l(t) layers, sorted."""
        min_exit = num_layers if self.min_exit is None else self.min_exit
        max_exit = num_layers if self.max_exit is None else self.max_exit
        check_fits("SkipDecode", min_exit, max_exit, num_layers)
        scheduled = budget(step, max_steps, min_exit, max_exit, self.decay)
        return tuple(sorted({*range(min(self.warmup, num_layers)), *range(num_layers - scheduled, num_layers)}))

    @classmethod
    def propose(cls, trial: Trial, num_layers: int, max_steps: int) -> Self:
        """Any budget; a warm-up of up to a quarter of the layers."""
        min_exit, max_exit, decay = propose_budget(trial, num_layers)
        return cls(min_exit, max_exit, trial.suggest_int("warmup", 0, max(1, num_layers // 4)), decay)

    def never_skip(self) -> "SkipDecode":
        """A budget of all layers."""
        return SkipDecode(min_exit=None, max_exit=None, warmup=self.warmup, decay=self.decay)
