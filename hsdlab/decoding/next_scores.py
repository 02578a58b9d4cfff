"""transformers' logits processors and warpers, for rows whose texts differ in length."""

import torch
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from hsdlab.decoding.device import sent
from hsdlab.decoding.finite import FiniteLogits

_KNOWS_ROWS = (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)


class NextScores:
    """Applies the processors of a call as transformers does: in float32, to texts of their true length.

    Rows of equal length are processed together. A processor sees drafts as it sees the text.

    Args:
        processors: Those that transformers has prepared. :class:`FiniteLogits` among them is left out, since it counts
            calls.
        rows: Rows of the batch. Processors that may know a row by its place in the batch are called for all of them:
            some of transformers' own, and all others.
    """

    def __init__(self, processors: LogitsProcessorList, rows: int) -> None:
        self._processors = LogitsProcessorList([each for each in processors if not isinstance(each, FiniteLogits)])
        self._of_all = rows > 1 and any(_may_know_rows(each) for each in self._processors)
        self._rows = rows

    def of(self, text: Tensor, lengths: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
        """Process the logits of the next token.

        Args:
            text: The texts, prompts included, LongTensor [rows, width].
            lengths: The tokens of each, LongTensor [rows] on the CPU; of more than ``width``, the scores mean nothing.
            rows: The place of each row in the batch, LongTensor [rows] on the CPU.
            logits: [rows, vocabulary].

        Returns:
            Scores [rows, vocabulary] in float32.
        """
        if not self._processors:
            return logits.to(torch.float32)
        scores = logits.to(torch.float32, copy=True)
        for length in lengths.unique().tolist():
            if length > text.shape[1]:
                continue
            group = (lengths == length).nonzero().squeeze(1)
            places = sent(group, text.device)
            scores[places] = self._processed(text[places, :length], rows[group], scores[places]).to(scores.dtype)
        return scores

    def of_places(self, text: Tensor, lengths: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
        """Process the logits of several next tokens of each row.

        Args:
            text: See :meth:`of`.
            lengths: The tokens of each row before the first of them, likewise.
            rows: See there.
            logits: [rows, places, vocabulary].

        Returns:
            Scores [rows, places, vocabulary] in float32.
        """
        if not self._processors:
            return logits.to(torch.float32)
        places = range(logits.shape[1])
        return torch.stack([self.of(text, lengths + place, rows, logits[:, place]) for place in places], dim=1)

    def _processed(self, text: Tensor, rows: Tensor, scores: Tensor) -> Tensor:
        if not self._of_all:
            return self._processors(text, scores)
        places = torch.zeros(self._rows, dtype=torch.long).index_copy(0, rows, torch.arange(len(rows)))
        whole = sent(places, text.device)  # the rows of other lengths stand in for nothing
        return self._processors(text[whole], scores[whole])[sent(rows, text.device)]


def _may_know_rows(processor: LogitsProcessor) -> bool:
    return isinstance(processor, _KNOWS_ROWS) or not type(processor).__module__.startswith("transformers.")
