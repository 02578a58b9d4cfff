"""Layer dropout: each example of a training batch passes by some layers, the upper ones more often."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hsdlab.errors import UserError


@dataclass(frozen=True)
class LayerDropout:
    """Skip layer l in each training example with probability rate · D(l).

    A skipped layer does not run for any token of the example, prompt included: its hidden state passes unchanged, and
    nobody attends there, so no keys and values are needed. (In decoding and in skip-aware training the prompt runs
    every layer.) Nothing is scaled up in return, as in LayerSkip (arXiv 2404.16710) and torchtune. A layer is computed
    for the whole batch unless all of its examples skip it: layer dropout trains for skipping, it saves little time.

    Validation and decoding are at full depth. LayerSkip raises the rate over time in pre-training only: in fine-tuning
    it is constant, as here.

    Attributes:
        rate: Of the layer that is skipped most often: 0 or more, less than 1; 0.2 in torchtune's recipe.
        profile: D(l) of the layers 0 … L-1. "exponential": 2^(l/(L-1)) - 1, LayerSkip's; "linear": l/(L-1), stochastic
            depth's (arXiv 1603.09382), which begins at 1/L; "uniform": 1, LayerDrop's (arXiv 1909.11556). The first
            two never skip layer 0.

    Raises:
        UserError: A rate out of its range, or a profile of another name.
    """

    rate: float = 0.1
    profile: Literal["exponential", "linear", "uniform"] = "exponential"

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise UserError(f"layer_dropout.rate={self.rate}: expected 0 or more, and less than 1.")
        if self.profile not in ("exponential", "linear", "uniform"):
            raise UserError(f"layer_dropout.profile={self.profile!r}: expected exponential, linear or uniform.")

    def rates(self, num_layers: int) -> Tensor:
        """Return the probability of each layer to be skipped, [layers]."""
        depth = torch.arange(num_layers) / max(1, num_layers - 1)  # 0 … 1
        profiles = {"exponential": 2**depth - 1, "linear": depth, "uniform": torch.ones(num_layers)}
        return self.rate * profiles[self.profile]

    def draw(self, input_ids: Tensor, num_layers: int) -> Tensor:
        """Draw the layers that each sequence runs, from torch's random state, as any dropout.

        Args:
            input_ids: [rows, length].
            num_layers: L of the model.

        Returns:
            BoolTensor [rows, length, layers], constant along the length, ready for `replay`.
        """
        rows, length = input_ids.shape
        runs = torch.rand(rows, num_layers) >= self.rates(num_layers)  # (rows, layers)
        return runs[:, None].expand(rows, length, num_layers)
