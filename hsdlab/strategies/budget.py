"""The layer budget of a schedule: how many layers at the top run for a new token, and for a token of the prompt."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

from hsdlab.errors import UserError
from hsdlab.strategies.schedule import Layers, ScheduledStrategy, Trial, check_layers

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
    "power": lambda progress: progress**2,
    "exponential": lambda progress: (1 - math.exp(-4 * progress)) / (1 - math.exp(-4)),
    "step": lambda progress: math.floor(4 * progress) / 4,
}
"""How far the layer budget has fallen from its maximum to its minimum (0 … 1) at a given progress t/T (0 … 1).

``linear`` is the papers'. The others answer SkipDecode's open question 1 and are ours: a half cosine, a square, an
exponential with time constant T/4, four equal steps.
"""


class BudgetStrategy(ScheduledStrategy):
    """A schedule by a layer budget, which the prompt may have too: what HSD and SkipDecode share.

    Attributes:
        decay: How the budgets fall: a key of ``DECAYS``.
        prompt_min_exit: Layers at the start of the prompt; None is all of the model's layers.
        prompt_max_exit: Layers at the end of the prompt; None is all of the model's layers.
    """

    decay: str
    prompt_min_exit: int | None
    prompt_max_exit: int | None

    @abstractmethod
    def layers_of(self, scheduled: int, num_layers: int) -> tuple[int, ...]:
        """Give the layers that run with a budget.

        Args:
            scheduled: The budget: how many layers run at the top, from 1 to L.
            num_layers: L.

        Returns:
            Indices of the top layers and of those that always run, sorted.
        """

    def prompt_layers(self, position: int, prompt_length: int, num_layers: int) -> tuple[int, ...]:
        """Give the layers that always run and the top layers of the prompt's budget, sorted."""
        ends = self.prompt_min_exit, self.prompt_max_exit
        scheduled = prompt_budget(type(self).__name__, position, prompt_length, num_layers, *ends, self.decay)
        return self.layers_of(scheduled, num_layers)

    def scheduled_prompt(self, prompt_length: int, num_layers: int) -> list[Sequence[int]] | None:
        """Give ``prompt_layers`` for all tokens of a prompt. None where the prompt has no budget: all layers run."""
        if self.prompt_min_exit is None and type(self).prompt_layers is BudgetStrategy.prompt_layers:
            return None
        return super().scheduled_prompt(prompt_length, num_layers)


def propose_budget(trial: Trial, num_layers: int) -> tuple[int, int, str]:
    """Choose a layer budget that fits a model.

    Args:
        trial: Chooses the values.
        num_layers: L.

    Returns:
        ``min_exit`` from 0 to ``max_exit``, ``max_exit`` from 1 to L, and ``decay``, a key of ``DECAYS``.
    """
    max_exit = trial.suggest_int("max_exit", 1, num_layers)
    min_exit = trial.suggest_int("min_exit", 0, max_exit)
    return min_exit, max_exit, trial.suggest_categorical("decay", list(DECAYS))


def budget(step: int, max_steps: int, min_exit: int, max_exit: int, decay: str = "linear") -> int:
    """Compute the layer budget l(t) = max(1, round(max_exit - (max_exit - min_exit) · decay(t/T))).

    (SkipDecode, arXiv 2307.02628, section 3; HSD, arXiv 2403.14919, equation 4), with Python's ``round``. Both papers'
    formulas are lost in the text we have; this form was recovered from HSD's tables (docs/reconstruction.md).

    Args:
        step: t; from T on the budget stays at its minimum.
        max_steps: T, the most new tokens.
        min_exit: Layers at the end; 0 counts as 1.
        max_exit: Layers in step 0.
        decay: A key of ``DECAYS``; ``linear`` is the papers'.

    Returns:
        Number of top layers that run in step t, at least 1.

    Example:
        >>> [budget(t, 10, min_exit=2, max_exit=8) for t in range(10)]
        [8, 7, 7, 6, 6, 5, 4, 4, 3, 3]
    """
    progress = min(step / max_steps, 1.0)
    return max(1, round(max_exit - (max_exit - min_exit) * DECAYS[decay](progress)))


def prompt_budget(
    name: str,
    position: int,
    prompt_length: int,
    num_layers: int,
    prompt_min_exit: int | None,
    prompt_max_exit: int | None,
    decay: str = "linear",
) -> int:
    """Compute the layer budget of one token of the prompt.

    It is the budget of the new tokens mirrored: ``prompt_max_exit`` for the last token of the prompt, falling towards
    its start by the same :func:`budget`. The papers run the prompt at full depth; SkipDecode (arXiv 2307.02628) leaves
    a decaying policy for it as an open question. This one is ours.

    Args:
        name: The strategy's class, for messages.
        position: From 0 to ``prompt_length - 1``.
        prompt_length: Tokens of the prompt.
        num_layers: L.
        prompt_min_exit: Layers at the start of the prompt; 0 counts as 1, None is L.
        prompt_max_exit: Layers at its end; None is L.
        decay: A key of ``DECAYS``.

    Returns:
        Number of top layers that run for the token, at least 1.

    Raises:
        UserError: The budget exceeds the model's layers.

    Example:
        >>> [prompt_budget("HSD", p, 5, 8, 2, None) for p in range(5)]
        [3, 4, 6, 7, 8]
    """
    lowest = num_layers if prompt_min_exit is None else prompt_min_exit
    highest = num_layers if prompt_max_exit is None else prompt_max_exit
    check_fits(name, lowest, highest, num_layers, of="prompt_")
    return budget(prompt_length - 1 - position, prompt_length, lowest, highest, decay)


def check_budget(name: str, min_exit: Layers, max_exit: Layers, decay: str) -> None:
    """Check the arguments of a layer budget when a strategy is made, before the model is known.

    Args:
        name: The strategy's class, for the message.
        min_exit: Compared with ``max_exit`` where both are numbers.
        max_exit: As above; "auto" and None depend on the model (:func:`check_fits`).
        decay: Has to be a key of ``DECAYS``.

    Raises:
        UserError: The budget rises, or there is no such decay.
    """
    if isinstance(min_exit, int) and isinstance(max_exit, int) and min_exit > max_exit:
        raise UserError(f"{name}: min_exit={min_exit} is larger than max_exit={max_exit}; the budget falls.")
    if decay not in DECAYS:
        raise UserError(f"{name}: decay={decay!r}; expected one of {', '.join(DECAYS)}.")


def check_prompt_budget(name: str, prompt_min_exit: int | None, prompt_max_exit: int | None) -> None:
    """Check the arguments of a layer budget of the prompt when a strategy is made, before the model is known.

    Args:
        name: The strategy's class, for the message.
        prompt_min_exit: At most ``prompt_max_exit``; None, which is all layers, only if that is None too.
        prompt_max_exit: A number of layers, or None for all.

    Raises:
        UserError: One of them is no number of layers, or the budget falls towards the end of the prompt.
    """
    check_layers(name, "prompt_min_exit", prompt_min_exit, also=[None])
    check_layers(name, "prompt_max_exit", prompt_max_exit, also=[None])
    if prompt_max_exit is not None and (prompt_min_exit is None or prompt_min_exit > prompt_max_exit):
        raise UserError(
            f"{name}: prompt_min_exit={prompt_min_exit} is larger than prompt_max_exit={prompt_max_exit}; the budget "
            "falls towards the start of the prompt, and None is all layers."
        )


def check_fits(name: str, min_exit: int, max_exit: int, num_layers: int, of: str = "") -> None:
    """Check a layer budget against a model.

    Args:
        name: The strategy's class, for the message.
        min_exit: Layers at the end; of the prompt, at its start.
        max_exit: Layers in step 0; of the prompt, at its end.
        num_layers: L.
        of: What the names of the two parameters begin with.

    Raises:
        UserError: The budget exceeds the model's layers, or rises on this model.
    """
    if max_exit > num_layers:
        raise UserError(f"{name}: {of}max_exit={max_exit} is beyond this model's {num_layers} layers.")
    if min_exit > max_exit:
        raise UserError(
            f"{name}: {of}min_exit={min_exit} is larger than {of}max_exit={max_exit}, on {num_layers} layers."
        )
