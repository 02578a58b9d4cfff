"""Skip-aware training: each batch is computed as one of several strategies would decode it."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hsdlab.decoding import Strategy
from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.families import decoder_parts


class SkipMixture:
    """Strategies with weights, one drawn per batch; and the mask with which `replay` computes what it decodes.

    With teacher forcing, the reference's token t is the input of decode step t, so it runs the layers of that step.
    The prompt runs all of them, and so does the last token of T = `max_new_tokens`: no step has it as its input.

    Args:
        model: Whose layers are skipped.
        strategies: Scheduled strategies: those whose layers are known before a step and the same for all rows.
        weights: How often each is drawn, in proportion to their sum; by default all equally often.
        max_new_tokens: T of the schedules.
        seed: Of the draws.

    Raises:
        ValueError: No strategy, one without a schedule or beyond the model, or weights that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        strategies: Sequence[Strategy],
        weights: Sequence[float] | None,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        weights = [1.0] * len(strategies) if weights is None else list(weights)
        if len(weights) != len(strategies):
            raise ValueError(
                f"skip_weights has {len(weights)} numbers for {len(strategies)} skip_strategies: give one for each."
            )
        if not strategies or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                f"skip_weights={weights}: expected numbers of 0 or more for one strategy or more, not all 0."
            )
        self.strategies = tuple(strategies)
        self.weights = weights
        self.seed = seed
        num_layers = decoder_parts(model).num_layers
        self._schedules = [_schedule(strategy, num_layers, max_new_tokens) for strategy in strategies]

    def draw(self, batch: int) -> int:
        """Draw the index of the strategy for a batch, by seed and number: the same in every process and after a resume.

        Args:
            batch: Number of the batch, counted from the start of the training.
        """
        return random.Random(f"{self.seed} {batch}").choices(range(len(self.strategies)), self.weights)[0]

    def executed(self, index: int, target_mask: Tensor) -> Tensor:
        """Say which layers run for each token of a teacher-forced batch under one of the strategies.

        Args:
            index: Of the strategy.
            target_mask: BoolTensor [rows, length], true at the tokens of the reference; at most T in a row.

        Returns:
            BoolTensor [rows, length, layers], ready for `replay`.
        """
        schedule = self._schedules[index].to(target_mask.device)  # (T, layers)
        step = (target_mask.long().cumsum(dim=1) - 1).clamp(min=0)  # (rows, length)
        return schedule[step] | ~target_mask[..., None]  # (rows, length, layers)


def _schedule(strategy: Strategy, num_layers: int, max_new_tokens: int) -> Tensor:
    """Return the layers of steps 0 … T-2 as decoding runs them, and all of them for token T-1: [T, layers]."""
    decisions = Decisions(strategy, num_layers, max_new_tokens)
    if not decisions.same_for_all_rows:
        raise ValueError(
            f"skip_strategies: {strategy!r} decides while it decodes; training needs layers that are known before a "
            "step, as those of FullDepth, SkipDecode and HSD."
        )
    schedule = torch.ones(max_new_tokens, num_layers, dtype=torch.bool)
    for step in range(max_new_tokens - 1):
        decisions.begin_step(step, rows=1)
        schedule[step] = decisions.executed[0]
    return schedule
