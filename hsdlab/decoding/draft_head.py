"""The head of a model for some tokens only: a draft needs no more, since the verification uses the whole head."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from hsdlab.decoding.families import DecoderParts


class DraftHead:
    """Computes the logits of some tokens; those of all others are minus infinity.

    Args:
        parts: The model's head, a plain matrix.
        tokens: LongTensor [n], without repetition, on the model's device.

    Attributes:
        weights: Weights that a hidden state is multiplied with.

    Raises:
        UnsupportedModelError: The head is something else (:meth:`DecoderParts.check_head_rows`).
    """

    def __init__(self, parts: DecoderParts, tokens: Tensor) -> None:
        parts.check_head_rows()
        self._scaled = parts.scaled
        self._tokens = tokens
        self._vocabulary = parts.vocabulary_size
        self._weight = parts.head.weight.detach()[tokens]  # (n, e)
        self._bias = None if parts.head.bias is None else parts.head.bias.detach()[tokens]
        self.weights = self._weight.numel()

    def __call__(self, hidden: Tensor) -> Tensor:
        """Compute logits.

        Args:
            hidden: After the final norm, [..., e].

        Returns:
            [..., vocabulary].
        """
        logits = self._scaled(linear(hidden, self._weight, self._bias), self._tokens)
        whole = logits.new_full((*logits.shape[:-1], self._vocabulary), -torch.inf)
        return whole.index_copy(-1, self._tokens, logits)
