"""ConfidenceStrategy, the base class of early exit; confidence measures and thresholds as plain functions."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from hsdlab.decoding import LayerState, StepState
from hsdlab.strategies.base import SkipStrategy


class ConfidenceStrategy(SkipStrategy):
    """A strategy that decides after each executed layer which sequences exit. Write ``should_exit``.

    A sequence that exits skips all layers above, and the others go on. If each sequence is decided by itself, a batch
    decodes as single sequences do. An answer on a GPU forces one synchronisation with it; an answer on the CPU ("nobody
    exits") forces none.

    If ``late_exit`` is true, the answer is read after the next executed layer, so that the host does not wait for the
    device. The sequence then exits after that layer.
    """

    late_exit: bool = False

    @abstractmethod
    def should_exit(self, state: LayerState) -> Tensor:
        """Decide who exits after a layer. Not called after the last layer that may run.

        Args:
            state: The layer, the step, num_layers and max_steps. For the sequences that ran the layer: their indices
                ``rows``, the layer's ``output`` [rows, d], the ``previous_output`` of the executed layer before (None
                after the first) and ``logits()`` [rows, vocabulary], computed only when called. ``keep`` and ``recall``
                hold values of each sequence until the step ends. More in :class:`~hsdlab.decoding.LayerState`.

        Returns:
            BoolTensor [rows], true where the sequence exits.
        """

    def plan(self, state: StepState) -> Tensor:
        """Let every layer run."""
        return torch.ones(state.rows, state.num_layers, dtype=torch.bool)


def softmax_response(logits: Tensor) -> Tensor:
    """Compute the top-1 minus the top-2 probability (CALM, section 3.5).

    Args:
        logits: [rows, vocabulary], of at least two tokens.

    Returns:
        [rows], 0 to 1, in float32 or wider.

    Example:
        >>> softmax_response(torch.tensor([[0.0, 0.0], [0.0, 100.0]])).tolist()
        [0.0, 1.0]
    """
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    top = probabilities.topk(2, dim=-1).values  # (rows, 2)
    return top[:, 0] - top[:, 1]


def saturation(output: Tensor, previous_output: Tensor | None) -> Tensor:
    """Compute the cosine of a layer's output and that of the executed layer before (CALM, section 3.5).

    Args:
        output: Before the final norm, [rows, d].
        previous_output: [rows, d]; None after the first executed layer, where there is nothing to compare with.

    Returns:
        [rows], -1 to 1, in float32 or wider; -1 after the first executed layer, so that none exits there (the paper's
        first exit is after its second layer).

    Example:
        >>> saturation(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]]))
        tensor([0.6000])
    """
    dtype = torch.promote_types(output.dtype, torch.float32)
    if previous_output is None:
        return output.new_full((len(output),), -1.0, dtype=dtype)
    return torch.cosine_similarity(output.to(dtype), previous_output.to(dtype), dim=-1)


def certainty(logits: Tensor) -> Tensor:
    """Compute 1 - H / ln V: one minus the entropy of the prediction over the largest entropy it can have.

    DeeBERT (arXiv 2004.12993) exits where H falls below a threshold S. That is where this rises above 1 - S / ln V.

    Args:
        logits: [rows, V], of at least two tokens.

    Returns:
        [rows], 0 (uniform) to 1 (all on one token), in float32 or wider.

    Example:
        >>> certainty(torch.tensor([[0.0, 0.0], [0.0, 100.0]])).tolist()
        [0.0, 1.0]
    """
    log_probabilities = torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    entropy = -(log_probabilities.exp() * log_probabilities.clamp(min=_SMALLEST_LOG)).sum(dim=-1)
    return 1 - entropy / math.log(logits.shape[-1])


_SMALLEST_LOG = -1e4  # stands for log 0 (a masked token): its share of the entropy is 0, not 0 · inf


def time_threshold(threshold: float, step: int, max_steps: int, temperature: float = 4.0, form: str = "paper") -> float:
    """Compute CALM's decaying threshold (equation 5): clip(0.9·λ + 0.1·exp(-τ·t/T)) to 0 … 1.

    The public t5x code has 0.1·λ·exp(…) instead (``form="t5x"``).

    Args:
        threshold: λ, the threshold without decay.
        step: t.
        max_steps: T, the most new tokens.
        temperature: τ; 4, the default, in the paper for the softmax response on CNN/DM and WMT. 0 is no decay.
        form: ``paper`` or ``t5x``.

    Returns:
        The threshold of step t, 0 to 1.

    Example:
        >>> round(time_threshold(0.3, 0, 10), 6), round(time_threshold(0.3, 0, 10, form="t5x"), 6)
        (0.37, 0.3)
    """
    decayed = math.exp(-temperature * step / max_steps) * (threshold if form == "t5x" else 1.0)
    return min(max(0.9 * threshold + 0.1 * decayed, 0.0), 1.0)


def depth_threshold(slope: float, layer: int) -> float:
    """Compute a threshold that falls with depth: clip(1 - λ·i) to 0 … 1.

    HSD's paper compares with CALM under "a decreasing series … controlled by λ", 0.02 and 0.005, and does not give
    the series; this is our reading.

    Args:
        slope: λ, by how much the threshold falls from one layer to the next. A smaller one skips less.
        layer: i, the index of the layer in the model.

    Returns:
        The threshold after the layer, which is 1 after layer 0 and 0 from layer 1/λ on.

    Example:
        >>> [depth_threshold(0.25, layer) for layer in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    return min(max(1.0 - slope * layer, 0.0), 1.0)
