"""ScheduledStrategy, whose layers are known before the step and the same for all sequences."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol, Self

from torch import Tensor

from hsdlab.decoding import StepState
from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.sub_layers import StepLayers, step_mask
from hsdlab.errors import UserError
from hsdlab.strategies.base import SkipStrategy

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

    ``prompt_layers`` may skip layers in the prompt too. By default the prompt runs at full depth.

    Example:
        >>> class EveryOther(ScheduledStrategy):
        ...     '''Run every second layer.'''
        ...     def layers_at(self, step, num_layers, max_steps):
        ...         return tuple(range(0, num_layers, 2))
        >>> EveryOther().layers_at(step=0, num_layers=6, max_steps=10)
        (0, 2, 4)
    """

    def check_model(self, parts: DecoderParts) -> None:
        """Refuse a model whose layers ``prompt_layers`` does not fit."""
        super().check_model(parts)
        self.prompt_layers(0, 1, parts.num_layers)

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

    def prompt_layers(self, position: int, prompt_length: int, num_layers: int) -> Sequence[int]:
        """Choose the layers of one token of the prompt. The base class chooses all layers, as the papers do.

        A token that skips a layer passes it unchanged. Later tokens attend to its keys and values there all the same,
        made from the hidden state with which it arrived (docs/decoding.md). The last token of the prompt gives the
        first new token. The layers of new token 0 are those of ``layers_at`` in step 0.

        Args:
            position: From 0, the first token of the sequence, to ``prompt_length - 1``; padding does not count.
            prompt_length: The tokens of the sequence's own prompt, without padding. So a sequence decodes in a batch as
                it does alone.
            num_layers: L.

        Returns:
            Layer indices from 0 to L-1, at least one, in any order.
        """
        return range(num_layers)

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

    def scheduled_prompt(self, prompt_length: int, num_layers: int) -> list[Sequence[int]] | None:
        """Give ``prompt_layers`` for all tokens of a prompt.

        Args:
            prompt_length: The tokens of the sequence's own prompt, without padding.
            num_layers: L.

        Returns:
            The layers of each token. None where the class does not write ``prompt_layers``: all tokens run all layers.
        """
        if type(self).prompt_layers is ScheduledStrategy.prompt_layers:
            return None
        return [self.prompt_layers(position, prompt_length, num_layers) for position in range(prompt_length)]

    def plan(self, state: StepState) -> Tensor:
        """Give ``layers_at`` as a mask, the same for all sequences."""
        layers = step_mask(self.layers_at(state.step, state.num_layers, state.max_steps), state.num_layers)
        return layers.expand(state.rows, *layers.shape)


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
