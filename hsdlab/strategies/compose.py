"""Compose: a schedule bounds the layers, a confidence exits earlier within them."""

from collections.abc import Sequence

from torch import Tensor

from hsdlab.decoding import LayerState, StepState
from hsdlab.decoding.families import DecoderParts
from hsdlab.errors import UserError
from hsdlab.strategies.base import SkipStrategy
from hsdlab.strategies.confidence import ConfidenceStrategy
from hsdlab.strategies.schedule import ScheduledStrategy


class Compose(SkipStrategy):
    """Run the layers of a schedule, and exit early within them where a confidence measure says so.

    HSD's paper (arXiv 2403.14919) says that it is compatible with methods based on a confidence score and shows no
    such run; this is our reading. The confidence is asked after each executed layer but the schedule's last. A layer
    keeps the model's index, in a threshold that falls with depth too; saturation compares with the last layer that ran.
    After an exit no layer above it runs, though the schedule lists it.

    Args:
        schedule: Which layers may run: HSD, SkipDecode, another ScheduledStrategy.
        confidence: Which sequences exit where: CALM, DeeBERT, PABEE, another ConfidenceStrategy.
    """

    def __init__(self, schedule: ScheduledStrategy, confidence: ConfidenceStrategy) -> None:
        for name, part, kind in (
            ("schedule", schedule, ScheduledStrategy),
            ("confidence", confidence, ConfidenceStrategy),
        ):
            if not isinstance(part, kind):
                raise UserError(
                    f"Compose: {name} is {part!r}; expected a {kind.__name__}: one schedule that bounds the layers and "
                    "one confidence that exits within them."
                )
        self.schedule = schedule
        self.confidence = confidence
        self.rows_depend = schedule.rows_depend or confidence.rows_depend

    def check_model(self, parts: DecoderParts) -> None:
        """Refuse a model that one of the two does not fit."""
        super().check_model(parts)
        self.schedule.check_model(parts)
        self.confidence.check_model(parts)

    def scheduled_layers(self, num_layers: int, max_steps: int) -> Sequence[Sequence[int]]:
        """The schedule's layers: an exit may leave some of them out."""
        return self.schedule.scheduled_layers(num_layers, max_steps)

    def plan(self, state: StepState) -> Tensor:
        """The schedule's plan."""
        return self.schedule.plan(state)

    def should_exit(self, state: LayerState) -> Tensor:
        """The confidence's answer."""
        return self.confidence.should_exit(state)

    def never_skip(self) -> "Compose | None":
        """Both at their setting that never skips, if both have one."""
        schedule, confidence = self.schedule.never_skip(), self.confidence.never_skip()
        return None if schedule is None or confidence is None else Compose(schedule, confidence)
