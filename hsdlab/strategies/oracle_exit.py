"""OracleExit: the earliest exit that changes no prediction, known in hindsight; an upper bound, not a method."""

from typing import Literal

import torch
from torch import Tensor

from hsdlab.decoding import HindsightState, StepState
from hsdlab.strategies.base import SkipStrategy
from hsdlab.strategies.probing import check_choice

_KEYS_AND_VALUES = ("law", "full")


class OracleExit(SkipStrategy):
    """Exit at the earliest layer that predicts the token of the full model.

    CALM's paper (arXiv 2207.07061, table 2) uses it as a bound of what a confidence measure could save. All layers run,
    each with an intermediate prediction; then the layers above the exit count as not run. So its depth is a bound, its
    text shows what the keys and values of skipped layers alone cost in quality, and its time means nothing.

    Args:
        keys_and_values: The keys and values of the layers above an exit. With ``law``, the default, they are computed
            from the hidden state at the exit, as for every other strategy. With ``full`` they are those of full depth,
            so that greedy decoding gives the full model's text.

    Raises:
        UserError: ``keys_and_values`` is neither of the two.
    """

    is_oracle = True

    def __init__(self, keys_and_values: Literal["law", "full"] = "law") -> None:
        check_choice("OracleExit", "keys_and_values", keys_and_values, _KEYS_AND_VALUES)
        self.keys_and_values = keys_and_values

    def plan(self, state: StepState) -> Tensor:
        """Let every layer run."""
        return torch.ones(state.rows, state.num_layers, dtype=torch.bool)

    def exit_layers(self, state: HindsightState) -> Tensor:
        """Find the earliest layer of each sequence whose most likely token is that of the last layer.

        Args:
            state: The outputs of all layers.

        Returns:
            The exit layers, LongTensor [rows], from 0 to L-1.
        """
        predictions = torch.stack([state.logits(layer).argmax(dim=-1) for layer in range(state.num_layers)])
        return (predictions == predictions[-1]).long().argmax(dim=0)  # of equal ones, argmax names the first

    def shown_parameters(self) -> dict[str, str]:
        """Show ``keys_and_values`` also at its default."""
        return {"keys_and_values": self.keys_and_values}
