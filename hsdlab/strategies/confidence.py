"""ConfidenceStrategy: exit layer by layer, row by row; and CALM's measure and thresholds as plain functions."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from hsdlab.decoding import LayerState, StepState
from hsdlab.strategies.base import SkipStrategy


class ConfidenceStrategy(SkipStrategy):
    """A strategy that is asked after each executed layer who exits. Write ``should_exit``.

    Each row exits by itself: it is frozen, the others go on, and layers above the last exit do not run. A batch
    decodes as its single rows do. Asking costs one device synchronisation per layer.
    """

    @abstractmethod
    def should_exit(self, state: LayerState) -> Tensor:
        """Decide who exits after a layer; not asked after the last one.

        Args:
            state: layer, step, num_layers, max_steps; for the rows still running, their indices ``rows``, the layer's
                ``output`` [rows, d], ``previous_output`` of the executed layer before (None at the first) and
                ``logits()`` [rows, vocabulary], computed only when called.

        Returns:
            BoolTensor [rows]: the row exits here.
        """

    def plan(self, state: StepState) -> Tensor:
        """Any layer may run."""
        return torch.ones(state.rows, state.num_layers, dtype=torch.bool)


def softmax_response(logits: Tensor) -> Tensor:
    """Top-1 minus top-2 probability (CALM, section 3.5).

    Args:
        logits: [rows, vocabulary].

    Returns:
        [rows], 0 to 1, in float32 or better.

    Example:
        >>> softmax_response(torch.tensor([[0.0, 0.0], [0.0, 100.0]])).tolist()
        [0.0, 1.0]
    """
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    top = probabilities.topk(2, dim=-1).values  # (rows, 2)
    return top[:, 0] - top[:, 1]


def time_threshold(threshold: float, step: int, max_steps: int, temperature: float = 4.0, form: str = "paper") -> float:
    """CALM's decaying threshold (equation 5): clip(0.9·λ + 0.1·exp(-τ·t/T)) to 0 … 1.

    The public t5x code has 0.1·λ·exp(…) instead (``form="t5x"``).

    Args:
        threshold: λ.
        step: t.
        max_steps: T, the most new tokens.
        temperature: τ; 4 in the paper for the softmax response on CNN/DM and WMT.
        form: ``paper`` or ``t5x``.

    Example:
        >>> round(time_threshold(0.3, 0, 10), 6), round(time_threshold(0.3, 0, 10, form="t5x"), 6)
        (0.37, 0.3)
    """
    decayed = math.exp(-temperature * step / max_steps) * (threshold if form == "t5x" else 1.0)
    return min(max(0.9 * threshold + 0.1 * decayed, 0.0), 1.0)


def depth_threshold(slope: float, layer: int) -> float:
    """A threshold that falls with depth: clip(1 - λ·i) to 0 … 1.

    HSD's paper compares with CALM under "a decreasing series … controlled by λ", 0.02 and 0.005, and does not give
    the series; this is our reading. A small λ is the safe end.

    Example:
        >>> [depth_threshold(0.25, layer) for layer in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    return min(max(1.0 - slope * layer, 0.0), 1.0)
