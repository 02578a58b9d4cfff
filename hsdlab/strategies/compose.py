"""Compose: a schedule bounds the layers, and a confidence measure exits earlier within them."""

from collections.abc import Sequence
from typing import Self

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hsdlab.decoding import LayerState, StepState
from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.sub_layers import StepLayers, layers_of
from hsdlab.errors import UserError
from hsdlab.strategies.base import SkipStrategy
from hsdlab.strategies.confidence import ConfidenceStrategy
from hsdlab.strategies.probing import ProbingStrategy
from hsdlab.strategies.schedule import ScheduledStrategy


class Compose(SkipStrategy):
    """Run the layers of a schedule, and exit early within them where a confidence measure says so.

    HSD's paper (arXiv 2403.14919) says that it is compatible with methods based on a confidence score, and shows no
    such run; this is our reading. The confidence is checked after each executed layer, except after the last one of the
    schedule. Layers keep the model's indices, also in a threshold that falls with depth. Saturation compares with the
    executed layer before. After an exit no layer above it runs, even if the schedule has it.

    Args:
        schedule: Says which layers may run: HSD, SkipDecode, another ScheduledStrategy.
        confidence: Says which sequences exit where: CALM, DeeBERT, PABEE, another ConfidenceStrategy.

    Raises:
        UserError: One of the two is not a strategy of its kind.
    """

    def __init__(self, schedule: ScheduledStrategy, confidence: ConfidenceStrategy) -> None:
        for name, part, kind in (
            ("schedule", schedule, ScheduledStrategy),
            ("confidence", confidence, ConfidenceStrategy),
        ):
            if not isinstance(part, kind):
                raise UserError(
                    f"Compose: {name} is {part!r}; expected a {kind.__name__}: one schedule that bounds the layers and "
                    "one confidence strategy that exits within them."
                )
        self.schedule = schedule
        self.confidence = confidence
        self.rows_depend = schedule.rows_depend or confidence.rows_depend

    @property
    def late_exit(self) -> bool:
        """Whether the confidence strategy's answers are read after the next executed layer."""
        return self.confidence.late_exit

    def check_model(self, parts: DecoderParts) -> None:
        """Refuse a model that one of the two does not fit."""
        super().check_model(parts)
        self.schedule.check_model(parts)
        self.confidence.check_model(parts)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer that one of the two does not fit."""
        self.schedule.check_tokenizer(tokenizer)
        self.confidence.check_tokenizer(tokenizer)

    def scheduled_layers(self, num_layers: int, max_steps: int) -> Sequence[StepLayers]:
        """Give the schedule's layers, of which an early exit may skip some.

        Args:
            num_layers: L.
            max_steps: T, the most new tokens.

        Raises:
            UserError: The schedule runs too few of the layers after which the confidence is checked, so that no
                sequence could ever exit.
        """
        scheduled = self.schedule.scheduled_layers(num_layers, max_steps)
        if scheduled and isinstance(self.confidence, ProbingStrategy):
            most = max(self.confidence.probes_among(layers_of(step)) for step in scheduled)
            needed = self.confidence.fewest_probes(num_layers)
            if most < needed:
                raise UserError(
                    f"{self!r}: no sequence could ever exit. In a step {self.schedule!r} runs {most} of the layers "
                    f"after which {type(self.confidence).__name__} checks its confidence, below the last one that it "
                    f"runs; {needed} or more are needed. Give probe_layers that it runs (a model trained for exits "
                    "checks after its own exits by default), or another schedule."
                )
        return scheduled

    def scheduled_prompt(self, prompt_length: int, num_layers: int) -> Sequence[Sequence[int]] | None:
        """Give the schedule's layers of the prompt, in which no token exits early.

        Args:
            prompt_length: The tokens of the sequence's own prompt, without padding.
            num_layers: L.

        Returns:
            The layers of each token; None where all tokens run all layers.
        """
        return self.schedule.scheduled_prompt(prompt_length, num_layers)

    def plan(self, state: StepState) -> Tensor:
        """Give the schedule's plan."""
        return self.schedule.plan(state)

    def should_exit(self, state: LayerState) -> Tensor:
        """Decide by the confidence strategy.

        Args:
            state: The sequences that ran the layer.

        Returns:
            BoolTensor [rows], true where the sequence exits.
        """
        return self.confidence.should_exit(state)

    def resolved(self, num_layers: int) -> Self:
        """Fill in the parameters of the schedule."""
        return self._with(schedule=self.schedule.resolved(num_layers))

    def never_skip(self) -> "Compose | None":
        """Compose the never-skip settings of both, if both have one."""
        schedule, confidence = self.schedule.never_skip(), self.confidence.never_skip()
        return None if schedule is None or confidence is None else Compose(schedule, confidence)
