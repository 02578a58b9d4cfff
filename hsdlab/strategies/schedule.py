"""ScheduledStrategy: the layers of a step are the same for all sequences and known before it; and how budgets fall."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from hsdlab.decoding import StepState
from hsdlab.errors import UserError
from hsdlab.strategies.base import SkipStrategy

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
    "power": lambda progress: progress**2,
    "exponential": lambda progress: (1 - math.exp(-4 * progress)) / (1 - math.exp(-4)),
    "step": lambda progress: math.floor(4 * progress) / 4,
}
"""How far the budget has fallen from its maximum to its minimum (0 … 1) at a given progress t/T (0 … 1).

``linear`` is the papers'; the others answer SkipDecode's open question 1 and are ours: a half cosine, a square, an
exponential with time constant T/4, four equal steps.
"""

Layers = int | Literal["auto"] | None
"""A number of layers; "auto" for a share of the model's, None for all of them."""


class Trial(Protocol):
    """Where `evaluate.py tune` asks for settings to try: an `optuna.Trial` is one, and its documentation holds."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Choose a whole number from `low` to `high`, both included; on a logarithmic scale if `log`."""
        ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Choose a number from `low` to `high`."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """Choose one of some names; they have to be the same in every trial."""
        ...


class ScheduledStrategy(SkipStrategy):
    """A strategy whose layers depend on the step only. Write ``layers_at``; no device synchronisation is needed.

    Example:
        >>> class EveryOther(ScheduledStrategy):
        ...     '''Run every second layer.'''
        ...     def layers_at(self, step, num_layers, max_steps):
        ...         return tuple(range(0, num_layers, 2))
        >>> EveryOther().layers_at(step=0, num_layers=6, max_steps=10)
        (0, 2, 4)
    """

    @abstractmethod
    def layers_at(self, step: int, num_layers: int, max_steps: int) -> Sequence[int]:
        """The layers that run in one decode step.

        Args:
            step: t; the pass whose input is new token t.
            num_layers: L.
            max_steps: T, the most new tokens.

        Returns:
            Layer indices, at least one.
        """

    @classmethod
    def propose(cls, trial: Trial, num_layers: int, max_steps: int) -> Self:
        """Propose a setting for `evaluate.py tune` to try. Write it, and the class can be tuned.

        Example: ``return cls(number=trial.suggest_int("number", 2, num_layers))``. A range may depend on what was
        chosen before, so that every proposal is a valid setting.

        Args:
            trial: Chooses the values.
            num_layers: L.
            max_steps: T, the most new tokens.

        Raises:
            UserError: The class does not say what there is to choose.
        """
        raise UserError(
            f"{cls.__name__} does not say which settings there are to try: write its classmethod propose(trial, "
            'num_layers, max_steps), such as: return cls(number=trial.suggest_int("number", 2, num_layers)).'
        )

    def scheduled_layers(self, num_layers: int, max_steps: int) -> list[Sequence[int]]:
        """``layers_at`` for steps 0 … max_steps - 2."""
        return [self.layers_at(step, num_layers, max_steps) for step in range(max_steps - 1)]

    def plan(self, state: StepState) -> Tensor:
        """``layers_at`` as a mask, the same for all sequences."""
        plan = torch.zeros(state.rows, state.num_layers, dtype=torch.bool)
        plan[:, list(self.layers_at(state.step, state.num_layers, state.max_steps))] = True
        return plan


def propose_budget(trial: Trial, num_layers: int) -> tuple[int, int, str]:
    """Choose ``min_exit``, ``max_exit`` and ``decay`` of a budget that fits a model."""
    max_exit = trial.suggest_int("max_exit", 1, num_layers)
    min_exit = trial.suggest_int("min_exit", 0, max_exit)
    return min_exit, max_exit, trial.suggest_categorical("decay", list(DECAYS))


def budget(step: int, max_steps: int, min_exit: int, max_exit: int, decay: str = "linear") -> int:
    """Number of layers scheduled in a step: falls from ``max_exit`` to ``min_exit``, at least 1.

    l(t) = max(1, round(max_exit - (max_exit - min_exit) · decay(t/T))) (SkipDecode, arXiv 2307.02628, section 3; HSD,
    arXiv 2403.14919, equation 4), with Python's ``round`` and T = ``max_steps``. Both papers' formulas are lost in
    the text we have; this form was recovered from HSD's tables (docs/reconstruction.md).

    Example:
        >>> [budget(t, 10, min_exit=2, max_exit=8) for t in range(10)]
        [8, 7, 7, 6, 6, 5, 4, 4, 3, 3]
    """
    progress = min(step / max_steps, 1.0)
    return max(1, round(max_exit - (max_exit - min_exit) * DECAYS[decay](progress)))


def check_layers(name: str, parameter: str, value: object, least: int = 0, also: Sequence[object] = ()) -> None:
    """Check a parameter that is a number of layers, or one of a few other values.

    Raises:
        UserError: In the words of the strategy's parameters.
    """
    if (isinstance(value, bool) or not isinstance(value, int) or value < least) and value not in also:
        expected = ", or ".join([f"a number of layers, {least} or more", *map(repr, also)])
        raise UserError(f"{name}: {parameter}={value!r}; expected {expected}.")


def check_budget(name: str, min_exit: Layers, max_exit: Layers, decay: str) -> None:
    """Check that a budget falls, in a way that there is, when a strategy is made.

    Raises:
        UserError: In the words of the strategy's parameters.
    """
    if isinstance(min_exit, int) and isinstance(max_exit, int) and min_exit > max_exit:
        raise UserError(f"{name}: min_exit={min_exit} is larger than max_exit={max_exit}; the budget falls.")
    if decay not in DECAYS:
        raise UserError(f"{name}: decay={decay!r}; expected one of {', '.join(DECAYS)}.")


def check_fits(name: str, min_exit: int, max_exit: int, num_layers: int) -> None:
    """Check a budget against a model.

    Raises:
        UserError: If it exceeds the model's layers.
    """
    if max_exit > num_layers:
        raise UserError(f"{name}: max_exit={max_exit} is beyond this model's {num_layers} layers.")
    if min_exit > max_exit:
        raise UserError(f"{name}: min_exit={min_exit} is larger than max_exit={max_exit}, on {num_layers} layers.")
