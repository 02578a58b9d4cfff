"""The texts of a batch that grow by several tokens at once, each row by its own number."""

import torch
from torch import Tensor

from hsdlab.decoding.device import sent


class GrowingTexts:
    """The prompts and what was written after them; rows whose text has ended leave.

    Args:
        prompts: LongTensor [rows, prompt].
        max_new_tokens: T.

    Attributes:
        prompt_length: Length of the (padded) prompts, tokens.
        rows: The places in the batch of the rows that are still decoded, LongTensor [rows] on the CPU.
        written: New tokens of each of them, likewise.
        new_tokens: New tokens of each row of the batch, LongTensor [batch] on the CPU.
    """

    def __init__(self, prompts: Tensor, max_new_tokens: int) -> None:
        batch, self.prompt_length = prompts.shape
        self._tokens = prompts.new_zeros(batch, self.prompt_length + max_new_tokens)
        self._tokens[:, : self.prompt_length] = prompts
        self.rows = torch.arange(batch)
        self.written = torch.zeros(batch, dtype=torch.long)
        self.new_tokens = torch.zeros(batch, dtype=torch.long)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row that is still decoded, with its prompt, LongTensor [rows] on the CPU."""
        return self.prompt_length + self.written

    def last(self) -> Tensor:
        """Look up the last token of each row.

        Returns:
            LongTensor [rows].
        """
        device = self._tokens.device
        return self._tokens[sent(self.rows, device), sent(self.lengths - 1, device)]

    def followed_by(self, tokens: Tensor) -> Tensor:
        """Return the texts with more tokens after them; nothing is written.

        Args:
            tokens: LongTensor [rows, n].

        Returns:
            LongTensor [rows, prompt + T]. What does not fit overwrites the last token.
        """
        device = self._tokens.device
        text = self._tokens[sent(self.rows, device)]
        places = sent(self.lengths, device)[:, None] + torch.arange(tokens.shape[1], device=device)
        return text.scatter_(1, places.clamp(max=text.shape[1] - 1), tokens)

    def write(self, texts: Tensor, added: Tensor) -> None:
        """Take longer texts.

        Args:
            texts: LongTensor [rows, prompt + T].
            added: New tokens of each row that are more than before, LongTensor [rows] on the CPU.
        """
        self._tokens[sent(self.rows, self._tokens.device)] = texts
        self.written = self.written + added
        self.new_tokens[self.rows] = self.written

    def keep(self, stay: Tensor) -> None:
        """Decode on with some rows.

        Args:
            stay: Indices in ``rows``, LongTensor [n] on the CPU, ascending.
        """
        self.rows, self.written = self.rows[stay], self.written[stay]

    def sequences(self, pad: Tensor | int) -> Tensor:
        """Return all rows, padded behind their texts.

        Args:
            pad: The padding token.

        Returns:
            LongTensor [batch, prompt + most new tokens].
        """
        longest = int(self.new_tokens.max())
        sequences = self._tokens[:, : self.prompt_length + longest]
        after = torch.arange(longest) >= self.new_tokens[:, None]
        sequences[:, self.prompt_length :][sent(after, sequences.device)] = pad
        return sequences
