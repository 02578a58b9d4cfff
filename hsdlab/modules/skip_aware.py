"""Skip-aware training: each batch, or each sequence of it, runs the layers that decoding under a strategy would run."""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hsdlab.decoding import Strategy
from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.forced import LayerSchedule, forced_mask, layer_schedule
from hsdlab.errors import UserError


class SkipMixture:
    """Draws strategies by weight, per batch or sequence, and gives `replay` the mask of their executed layers.

    With teacher forcing, the reference's token t is the input of decode step t, so it runs the layers of that step.
    The last token of T = `max_new_tokens` runs all layers: no step has it as its input. The prompt runs the layers of
    the strategy's `prompt_layers`, by default all.

    Args:
        model: The model whose decoder layers are skipped.
        strategies: Strategies whose layers are known before a step and the same for all sequences.
        weights: How often each is drawn, relative to the sum. None draws all equally often.
        max_new_tokens: T of the schedules.
        seed: Seed of the draws.
        final_weights: Weights at the end of the training. A strategy's share of the draws moves there linearly. None
            keeps `weights`.

    Attributes:
        skips: BoolTensor [strategies], true for a strategy that skips a layer for any token.
        runs: BoolTensor [layers], true for a layer that any strategy runs in any decode step.

    Raises:
        UserError: No strategy, one that decides while it decodes or does not fit the model, or weights that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        strategies: Sequence[Strategy],
        weights: Sequence[float] | None,
        max_new_tokens: int,
        seed: int,
        final_weights: Sequence[float] | None = None,
    ) -> None:
        self.strategies = tuple(strategies)
        self.weights = _checked("skip_weights", weights, len(strategies))
        self.final_weights = self.weights
        if final_weights is not None:
            self.final_weights = _checked("final_skip_weights", final_weights, len(strategies))
        self.seed = seed
        num_layers = decoder_parts(model).num_layers
        self._schedules = [_schedule(strategy, num_layers, max_new_tokens) for strategy in strategies]
        self.skips = torch.tensor([schedule.skips for schedule in self._schedules])  # (strategies,)
        self.runs = torch.stack([_runs(schedule.steps[:-1]) for schedule in self._schedules]).any(dim=0)  # (layers,)

    def draw(self, batch: int, progress: float = 0.0, rows: int | None = None, rank: int = 0) -> list[int]:
        """Draw strategies by seed and batch. A resumed run draws the same ones.

        Args:
            batch: Number of the batch, counted from the start of the training.
            progress: Share of the training that is done, 0 to 1: the position between the first and the final weights.
            rows: Number of sequences, one draw for each. None makes a single draw, the same in every process.
            rank: Rank of the process, so that its sequences get draws of their own; used with `rows` only.

        Returns:
            Indices into the strategies, `rows` of them or one.
        """
        pairs = zip(_shares(self.weights), _shares(self.final_weights), strict=True)
        weights = [(1 - progress) * first + progress * final for first, final in pairs]
        draws = random.Random(f"{self.seed} {batch}" if rows is None else f"{self.seed} {batch} {rank}")
        return draws.choices(range(len(self.strategies)), weights, k=rows or 1)

    def executed(self, drawn: Sequence[int], target_mask: Tensor, attention_mask: Tensor) -> Tensor:
        """Say which layers run for each token of a teacher-forced batch.

        Args:
            drawn: Index of the strategy of each sequence, or one for all.
            target_mask: BoolTensor [rows, length], true at the tokens of the reference; at most T in each row.
            attention_mask: [rows, length], 1 for tokens and 0 for padding.

        Returns:
            BoolTensor [rows, length, layers], ready for `replay`; [rows, length, layers, 2] if a strategy runs
            attention and MLP apart.
        """
        return forced_mask([self._schedules[index] for index in drawn], target_mask, attention_mask)


def _checked(name: str, weights: Sequence[float] | None, number: int) -> list[float]:
    """Return the weights of so many strategies, equal ones for None."""
    weights = [1.0] * number if weights is None else list(weights)
    if len(weights) != number:
        raise UserError(f"{name} has {len(weights)} numbers for {number} skip_strategies: give one for each.")
    if not weights or not all(0 <= weight < math.inf for weight in weights) or not 0 < sum(weights) < math.inf:
        raise UserError(f"{name}={weights}: expected finite numbers of 0 or more for one strategy or more, not all 0.")
    return weights


def _runs(steps: Tensor) -> Tensor:
    """Tell which layers run in some step, given [steps, layers] or [steps, layers, 2]."""
    return steps.flatten(2).any(dim=-1).any(dim=0) if steps.dim() == 3 else steps.any(dim=0)


def _shares(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def _schedule(strategy: Strategy, num_layers: int, max_new_tokens: int) -> LayerSchedule:
    schedule = layer_schedule(strategy, num_layers, max_new_tokens)
    if schedule is None:
        raise UserError(
            f"skip_strategies: {strategy!r} decides while it decodes; training needs layers that are known before a "
            "step, as those of FullDepth, SkipDecode and HSD."
        )
    return schedule
