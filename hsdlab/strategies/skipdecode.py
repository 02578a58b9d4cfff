"""SkipDecode (Del Corro et al. 2023, arXiv 2307.02628)."""

from typing import Self

from hsdlab.errors import UserError
from hsdlab.strategies.budget import (
    BudgetStrategy,
    budget,
    check_budget,
    check_fits,
    check_prompt_budget,
    propose_budget,
)
from hsdlab.strategies.schedule import Layers, Trial, check_layers


class SkipDecode(BudgetStrategy):
    """Skip the lower and middle layers: run a warm-up at the bottom, and a decaying budget of layers at the top.

    Executed in step t: {0 … warmup-1} ∪ {L-l(t) … L-1}. The layer budget l(t) falls from ``max_exit`` to ``min_exit``
    over T = ``max_new_tokens`` (``budget``). All sequences of a batch run the same layers. The sets only shrink, so
    it needs no late KV computation, unless the prompt skips layers.

    Differs from the paper: the paper's formula is lost in the text that we have. The form was recovered from the
    averages in HSD's tables (docs/reconstruction.md). The prompt runs at full depth, as in the paper, unless
    ``prompt_min_exit`` is given. It then runs the same warm-up and a budget at the top, as new tokens do; this is our
    reading of the paper's open question on a decaying policy for the prompt.

    Args:
        min_exit: Layer budget at the end; None is all of the model's layers. "auto" is 10/36 of them, rounded, and at
            most ``max_exit``.
        max_exit: Layer budget in step 0; None is all of the model's layers. "auto" is 20/36 of them, rounded, and at
            least ``min_exit``. The defaults are the first setting of the HSD paper's tables (arXiv 2403.14919),
            (10, 20) on the 36 layers of GPT-2 Large, in proportion to the model's layers.
        warmup: Layers that always run at the bottom, from 0 to L.
        decay: How the budget falls: a key of ``DECAYS``; ``linear`` is the paper's.
        prompt_min_exit: Layer budget at the start of the prompt, from which it rises to ``prompt_max_exit``
            (:func:`~hsdlab.strategies.budget.prompt_budget`). None, the default, is all of the model's layers: the
            prompt runs at full depth.
        prompt_max_exit: Layer budget at the end of the prompt; None is all of the model's layers.

    Raises:
        UserError: A number of layers is negative, ``min_exit`` is larger than ``max_exit``, also of the prompt, or
            ``decay`` is unknown.

    Example:
        >>> SkipDecode(min_exit=2, max_exit=4).layers_at(step=0, num_layers=8, max_steps=10)
        (0, 4, 5, 6, 7)
    """

    def __init__(
        self,
        min_exit: Layers = "auto",
        max_exit: Layers = "auto",
        warmup: int = 1,
        decay: str = "linear",
        prompt_min_exit: int | None = None,
        prompt_max_exit: int | None = None,
    ) -> None:
        check_layers("SkipDecode", "min_exit", min_exit, also=["auto", None])
        check_layers("SkipDecode", "max_exit", max_exit, also=["auto", None])
        check_layers("SkipDecode", "warmup", warmup)
        check_budget("SkipDecode", min_exit, max_exit, decay)
        check_prompt_budget("SkipDecode", prompt_min_exit, prompt_max_exit)
        self.min_exit = min_exit
        self.max_exit = max_exit
        self.warmup = warmup
        self.decay = decay
        self.prompt_min_exit = prompt_min_exit
        self.prompt_max_exit = prompt_max_exit

    def exits_on(self, num_layers: int) -> tuple[int, int]:
        """Resolve ``min_exit`` and ``max_exit`` for a model.

        Args:
            num_layers: L.

        Returns:
            Both as numbers of layers; given numbers that L is too small for are not refused here.

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
        """Give the warm-up layers and the top l(t) layers, sorted."""
        min_exit, max_exit = self.exits_on(num_layers)
        check_fits("SkipDecode", min_exit, max_exit, num_layers)
        return self.layers_of(budget(step, max_steps, min_exit, max_exit, self.decay), num_layers)

    def layers_of(self, scheduled: int, num_layers: int) -> tuple[int, ...]:
        """Give the warm-up layers and the top layers, sorted."""
        if self.warmup > num_layers:
            raise UserError(f"SkipDecode: warmup={self.warmup} is beyond this model's {num_layers} layers.")
        return tuple(sorted({*range(self.warmup), *range(num_layers - scheduled, num_layers)}))

    @classmethod
    def propose(cls, trial: Trial, num_layers: int, max_steps: int) -> Self:
        """Propose any budget, and a warm-up of up to a quarter of the layers."""
        min_exit, max_exit, decay = propose_budget(trial, num_layers)
        return cls(min_exit, max_exit, trial.suggest_int("warmup", 0, max(1, num_layers // 4)), decay)

    def resolved(self, num_layers: int) -> Self:
        """Fill in ``min_exit`` and ``max_exit``."""
        min_exit, max_exit = self.exits_on(num_layers)
        return self._with(min_exit=min_exit, max_exit=max_exit)

    def never_skip(self) -> "SkipDecode":
        """Set the budget to all layers."""
        return SkipDecode(min_exit=None, max_exit=None, warmup=self.warmup, decay=self.decay)


def _number(layers: Layers, of_36: int, num_layers: int) -> int:
    """Resolve a number of layers for a model of L layers; "auto" is the share that ``of_36`` layers are of 36."""
    if layers == "auto":
        return round(of_36 * num_layers / 36)
    return num_layers if layers is None else layers
