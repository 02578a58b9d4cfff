"""The head of a model for some tokens only, for predictions that need no more: of drafts, and of confidence checks."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from hsdlab.decoding.device import sent
from hsdlab.decoding.families import DecoderParts


class TokenHead:
    """Computes the logits of some tokens from a copy of their rows of the head.

    Args:
        parts: The model's head, a plain matrix.
        tokens: LongTensor [n], without repetition.

    Attributes:
        tokens: The same, on the model's device.
        weights: Weights that a hidden state is multiplied with.

    Raises:
        UnsupportedModelError: The head is something else (:meth:`DecoderParts.check_head_rows`).
    """

    def __init__(self, parts: DecoderParts, tokens: Tensor) -> None:
        parts.check_head_rows()
        self.tokens = tokens = sent(tokens, parts.head.weight.device)
        self._scaled = parts.scaled
        self._vocabulary = parts.vocabulary_size
        self._weight = parts.head.weight.detach()[tokens]  # (n, e)
        self._bias = None if parts.head.bias is None else parts.head.bias.detach()[tokens]
        self.weights = self._weight.numel()

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits of the tokens.

        Args:
            hidden: After the final norm, [..., e].

        Returns:
            [..., n], in the order of ``tokens``.
        """
        return self._scaled(linear(hidden, self._weight, self._bias), self.tokens)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Compute logits as the whole head does; those of all other tokens are minus infinity.

        Args:
            hidden: After the final norm, [..., e].

        Returns:
            [..., vocabulary].
        """
        logits = self.logits(hidden)
        whole = logits.new_full((*logits.shape[:-1], self._vocabulary), -torch.inf)
        return whole.index_copy(-1, self.tokens, logits)


class TokenHeads:
    """The heads of one decode, each made when it is first needed."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Tensor, TokenHead]] = {}

    def of(self, parts: DecoderParts, tokens: Tensor) -> TokenHead:
        """Return the head of some tokens.

        Args:
            parts: The model's head.
            tokens: LongTensor [n], without repetition; for the same object, the same head.

        Returns:
            The head.
        """
        if id(tokens) not in self._made:
            self._made[id(tokens)] = tokens, TokenHead(parts, tokens)  # which keeps the tokens, and so their id
        return self._made[id(tokens)][1]
