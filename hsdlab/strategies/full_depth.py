"""FullDepth: the baseline."""

from typing import Self

from hsdlab.strategies.schedule import ScheduledStrategy


class FullDepth(ScheduledStrategy):
    """Run every layer in every step: plain decoding, the baseline of the other strategies."""

    def layers_at(self, step: int, num_layers: int, max_steps: int) -> tuple[int, ...]:
        """Give all layers."""
        return tuple(range(num_layers))

    def never_skip(self) -> Self:
        """Return itself."""
        return self
