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

    CALM's paper (arXiv 2207.07061, table 2) bounds so what any measure of confidence could save. All layers run,
    and the head looks at each of them; then the layers above the exit count as not run. So its depth is a bound, its
    text shows what late keys and values alone cost, and its time means nothing.

    Args:
        keys_and_values: What later tokens find at the layers above an exit: under ``law``, entries made from the state
            that exited, as for every other strategy; under ``full``, those of the full pass, so that greedy decoding
            gives the full model's text.
    """

    is_oracle = True

    def __init__(self, keys_and_values: Literal["law", "full"] = "law") -> None:
        check_choice("OracleExit", "keys_and_values", keys_and_values, _KEYS_AND_VALUES)
        self.keys_and_values = keys_and_values

    def plan(self, state: StepState) -> Tensor:
        """All layers."""
        return torch.ones(state.rows, state.num_layers, dtype=torch.bool)

    def exit_layers(self, state: HindsightState) -> Tensor:
        """The earliest layer of each sequence whose likeliest token is that of the last layer, LongTensor [rows]."""
        predictions = torch.stack([state.logits(layer).argmax(dim=-1) for layer in range(state.num_layers)])
        return (predictions == predictions[-1]).long().argmax(dim=0)  # of equal ones, argmax names the first

    def shown_parameters(self) -> dict[str, str]:
        """Whose keys and values, always."""
        return {"keys_and_values": self.keys_and_values}
