"""Layer dropout: each example of a training batch skips some layers at random, the upper ones more often."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hsdlab.errors import UserError


@dataclass(frozen=True)
class LayerDropout:
    """Skip layer l in each training example with probability rate · D(l).

    A skipped layer does not run for any token of the example, prompt included. The hidden states pass unchanged, and no
    token attends in that layer, so it needs no keys and values. (In decoding and in skip-aware training the prompt runs
    every layer.) The outputs of executed layers are not scaled up, as in LayerSkip (arXiv 2404.16710) and torchtune. A
    layer is computed for the whole batch unless all examples skip it. So layer dropout trains a model for skipping, and
    saves little time.

    Validation and decoding are at full depth. The rate is constant, as in LayerSkip's fine-tuning; LayerSkip raises it
    over time in pre-training only.

    Attributes:
        rate: Probability to skip the layer with D(l) = 1, from 0 to below 1; 0.2 in torchtune's recipe.
        profile: D(l) of the layers 0 … L-1. "exponential": 2^(l/(L-1)) - 1, LayerSkip's; "linear": l/(L-1), stochastic
            depth's (arXiv 1603.09382), which begins at 1/L; "uniform": 1, LayerDrop's (arXiv 1909.11556). The first
            two never skip layer 0.

    Raises:
        UserError: A rate out of its range, or an unknown profile.
    """

    rate: float = 0.1
    profile: Literal["exponential", "linear", "uniform"] = "exponential"

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise UserError(f"layer_dropout.rate={self.rate}: expected 0 or more, and less than 1.")
        if self.profile not in ("exponential", "linear", "uniform"):
            raise UserError(f"layer_dropout.profile={self.profile!r}: expected exponential, linear or uniform.")

    def rates(self, num_layers: int) -> Tensor:
        """Compute the probability with which each layer is skipped.

        Args:
            num_layers: L of the model.

        Returns:
            Float32 [layers], from 0 to `rate`.
        """
        depth = torch.arange(num_layers) / max(1, num_layers - 1)  # 0 … 1
        profiles = {"exponential": 2**depth - 1, "linear": depth, "uniform": torch.ones(num_layers)}
        return self.rate * profiles[self.profile]

    def draw(self, input_ids: Tensor, num_layers: int) -> Tensor:
        """Draw the layers that each sequence runs, from torch's random state, as other dropout does.

        Args:
            input_ids: [rows, length]; only the shape is used.
            num_layers: L of the model.

        Returns:
            BoolTensor [rows, length, layers] on the CPU, true at executed layers and the same along the length, ready
            for `replay`.
        """
        rows, length = input_ids.shape
        runs = torch.rand(rows, num_layers) >= self.rates(num_layers)  # (rows, layers)
        return runs[:, None].expand(rows, length, num_layers)
