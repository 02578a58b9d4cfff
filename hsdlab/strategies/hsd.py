"""Hierarchical Skip Decoding (Zhu et al. 2024, arXiv 2403.14919)."""

from typing import Self

from hsdlab.strategies.budget import (
    BudgetStrategy,
    budget,
    check_budget,
    check_fits,
    check_prompt_budget,
    propose_budget,
)
from hsdlab.strategies.schedule import Trial, check_layers


class HSD(BudgetStrategy):
    """Run every (num_skipped + 1)-th layer, and a decaying budget of layers at the top.

    Executed in step t: {i : i mod (num_skipped + 1) = 0} ∪ {L-l(t) … L-1}. The layer budget l(t) falls from
    ``max_exit`` to ``min_exit`` over T = ``max_new_tokens`` (``budget``). It needs no training. The sets only
    shrink, so it needs no late KV computation, unless the prompt skips layers.

    Differs from the paper: its formulas and hyper-parameter values are lost in the text that we have, so this is a
    reconstruction. It gives all 80 "Avg. Layer" figures of the paper's five tables within 0.015 layers
    (docs/reconstruction.md). The prompt runs at full depth, as in the paper, unless ``prompt_min_exit`` is given. It
    then runs the same kept layers and a budget at the top, as new tokens do; this is our reading of a question that
    SkipDecode's paper leaves open.

    Args:
        num_skipped: s, the layers skipped between two kept ones; 0 never skips.
        min_exit: Layer budget at the end, 0 or more; 0 in all of the paper's settings. The budget itself is never
            below 1.
        max_exit: Layer budget in step 0, at least ``min_exit`` and at most L. None is half of the model's layers,
            rounded down (the paper's first setting, 18 of 36).
        decay: How the budget falls: a key of ``DECAYS``; ``linear`` is the paper's.
        prompt_min_exit: Layer budget at the start of the prompt, from which it rises to ``prompt_max_exit``
            (:func:`~hsdlab.strategies.budget.prompt_budget`). None, the default, is all of the model's layers: the
            prompt runs at full depth.
        prompt_max_exit: Layer budget at the end of the prompt; None is all of the model's layers.

    Raises:
        UserError: A number of layers is negative, ``min_exit`` is larger than ``max_exit``, also of the prompt, or
            ``decay`` is unknown.

    Example:
        >>> HSD(num_skipped=1, min_exit=0, max_exit=4).layers_at(step=0, num_layers=8, max_steps=10)
        (0, 2, 4, 5, 6, 7)
        >>> HSD(num_skipped=1, min_exit=0, max_exit=4).layers_at(step=8, num_layers=8, max_steps=10)
        (0, 2, 4, 6, 7)
        >>> HSD(num_skipped=3, prompt_min_exit=0, prompt_max_exit=4).prompt_layers(9, prompt_length=10, num_layers=8)
        (0, 4, 5, 6, 7)
    """

    def __init__(
        self,
        num_skipped: int = 1,
        min_exit: int = 0,
        max_exit: int | None = None,
        decay: str = "linear",
        prompt_min_exit: int | None = None,
        prompt_max_exit: int | None = None,
    ) -> None:
        check_layers("HSD", "num_skipped", num_skipped)
        check_layers("HSD", "min_exit", min_exit)
        check_layers("HSD", "max_exit", max_exit, also=[None])
        check_budget("HSD", min_exit, max_exit, decay)
        check_prompt_budget("HSD", prompt_min_exit, prompt_max_exit)
        self.num_skipped = num_skipped
        self.min_exit = min_exit
        self.max_exit = max_exit
        self.decay = decay
        self.prompt_min_exit = prompt_min_exit
        self.prompt_max_exit = prompt_max_exit

    def layers_at(self, step: int, num_layers: int, max_steps: int) -> tuple[int, ...]:
        """Give every (num_skipped + 1)-th layer and the top l(t) layers, sorted."""
        max_exit = self._max_exit_on(num_layers)
        check_fits("HSD", self.min_exit, max_exit, num_layers)
        return self.layers_of(budget(step, max_steps, self.min_exit, max_exit, self.decay), num_layers)

    def layers_of(self, scheduled: int, num_layers: int) -> tuple[int, ...]:
        """Give every (num_skipped + 1)-th layer and the top layers, sorted."""
        kept = range(0, num_layers, self.num_skipped + 1)
        return tuple(sorted({*kept, *range(num_layers - scheduled, num_layers)}))

    @classmethod
    def propose(cls, trial: Trial, num_layers: int, max_steps: int) -> Self:
        """Propose any budget, and ``num_skipped`` on a log scale, since about L / (num_skipped + 1) layers are kept."""
        num_skipped = trial.suggest_int("num_skipped", 1, max(1, num_layers - 1), log=True)
        return cls(num_skipped, *propose_budget(trial, num_layers))

    def resolved(self, num_layers: int) -> Self:
        """Fill in ``max_exit``."""
        return self._with(max_exit=max(self.min_exit, self._max_exit_on(num_layers)))

    def _max_exit_on(self, num_layers: int) -> int:
        return num_layers // 2 if self.max_exit is None else self.max_exit

    def never_skip(self) -> "HSD":
        """Set ``num_skipped`` to 0."""
        return HSD(num_skipped=0, min_exit=self.min_exit, max_exit=self.max_exit, decay=self.decay)
