"""ScheduledStrategy, whose layers are known before the step and the same for all sequences; and the layer budget."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, Self

from torch import Tensor

from hsdlab.decoding import StepState
from hsdlab.decoding.sub_layers import StepLayers, step_mask
from hsdlab.errors import UserError
from hsdlab.strategies.base import SkipStrategy

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

Layers = int | Literal["auto"] | None
"""A number of layers; "auto" is a share of the model's layers, None is all of them."""


class Trial(Protocol):
    """Chooses the settings that `evaluate.py tune` tries. It is the part of an `optuna.Trial` that `propose` needs."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Choose a whole number.

        Args:
            name: The parameter's name, the same in every trial.
            low: The smallest choice.
            high: The largest choice, included.
            step: The distance of neighbouring choices; 1 with ``log``.
            log: Whether to choose on a logarithmic scale, on which small numbers are as likely as large ones.

        Returns:
            The number.
        """
        ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Choose a number.

        Args:
            name: The parameter's name, the same in every trial.
            low: The smallest choice.
            high: The largest choice, included.
            step: The distance of neighbouring choices; None allows every number between. Not together with ``log``.
            log: Whether to choose on a logarithmic scale.

        Returns:
            The number.
        """
        ...

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """Choose one of some names.

        Args:
            name: The parameter's name, the same in every trial.
            choices: The names to choose from, also the same in every trial.

        Returns:
            One of ``choices``.
        """
        ...


class ScheduledStrategy(SkipStrategy):
    """A strategy whose layers depend on the step only. Write ``layers_at``. It forces no synchronisation with a GPU.

    Example:
        >>> class EveryOther(ScheduledStrategy):
        ...     '''Run every second layer.'''
        ...     def layers_at(self, step, num_layers, max_steps):
        ...         return tuple(range(0, num_layers, 2))
        >>> EveryOther().layers_at(step=0, num_layers=6, max_steps=10)
        (0, 2, 4)
    """

    @abstractmethod
    def layers_at(self, step: int, num_layers: int, max_steps: int) -> StepLayers:
        """Choose the layers of one decode step.

        Args:
            step: t, from 0 to T-2; the input of the decode step is new token t.
            num_layers: L.
            max_steps: T, the most new tokens.

        Returns:
            Layer indices from 0 to L-1, at least one, in any order; or :class:`~hsdlab.SubLayers`, where attention and
            MLP run apart.
        """

    @classmethod
    def propose(cls, trial: Trial, num_layers: int, max_steps: int) -> Self:
        """Propose a setting for `evaluate.py tune` to try. A class that writes it can be tuned.

        Example: ``return cls(number=trial.suggest_int("number", 2, num_layers))``. A range may depend on earlier
        choices, so that every proposal is a valid setting.

        Args:
            trial: Chooses the values.
            num_layers: L.
            max_steps: T, the most new tokens.

        Returns:
            A strategy of this class that fits the model.

        Raises:
            UserError: The class does not write this method.
        """
        raise UserError(
            f"{cls.__name__} does not say which settings to try: write its classmethod propose(trial, "
            'num_layers, max_steps), such as: return cls(number=trial.suggest_int("number", 2, num_layers)).'
        )

    def scheduled_layers(self, num_layers: int, max_steps: int) -> list[StepLayers]:
        """Give ``layers_at`` for steps 0 … T-2."""
        return [self.layers_at(step, num_layers, max_steps) for step in range(max_steps - 1)]

    def plan(self, state: StepState) -> Tensor:
        """Give ``layers_at`` as a mask, the same for all sequences."""
        layers = step_mask(self.layers_at(state.step, state.num_layers, state.max_steps), state.num_layers)
        return layers.expand(state.rows, *layers.shape)


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


def check_layers(name: str, parameter: str, value: object, least: int = 0, also: Sequence[object] = ()) -> None:
    """Check a parameter that is a number of layers, or one of a few other values.

    Args:
        name: The strategy's class, for the message.
        parameter: The parameter's name, for the message.
        value: The value that was given.
        least: The smallest number of layers.
        also: Other values that are allowed, such as "auto" and None; by default none.

    Raises:
        UserError: ``value`` is neither of the two.
    """
    if (isinstance(value, bool) or not isinstance(value, int) or value < least) and value not in also:
        expected = ", or ".join([f"a number of layers, {least} or more", *map(repr, also)])
        raise UserError(f"{name}: {parameter}={value!r}; expected {expected}.")


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


def check_fits(name: str, min_exit: int, max_exit: int, num_layers: int) -> None:
    """Check a layer budget against a model.

    Args:
        name: The strategy's class, for the message.
        min_exit: Layers at the end.
        max_exit: Layers in step 0.
        num_layers: L.

    Raises:
        UserError: The budget exceeds the model's layers, or rises on this model.
    """
    if max_exit > num_layers:
        raise UserError(f"{name}: max_exit={max_exit} is beyond this model's {num_layers} layers.")
    if min_exit > max_exit:
        raise UserError(f"{name}: min_exit={min_exit} is larger than max_exit={max_exit}, on {num_layers} layers.")
