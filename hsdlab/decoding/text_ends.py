"""Where texts end that grow by several tokens at once, by transformers' stopping criteria."""

import torch
from torch import Tensor
from transformers import MaxLengthCriteria, StoppingCriteria, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria

from hsdlab.decoding.device import sent


class TextEnds:
    """Finds the token with which each text ends.

    End-of-sequence tokens and the length are found at once. Every other criterion is asked after each new token of each
    row, alone, since rows differ in length.

    Args:
        criteria: Those that transformers has prepared.
        prompt_length: Length of the (padded) prompts, tokens.
        max_new_tokens: T.

    Attributes:
        max_new_tokens: The most new tokens: T, or fewer where a criterion says so.
    """

    def __init__(self, criteria: StoppingCriteriaList, prompt_length: int, max_new_tokens: int) -> None:
        tokens = [each.eos_token_id.flatten().cpu() for each in criteria if type(each) is EosTokenCriteria]
        self._end_tokens = torch.cat(tokens) if tokens else torch.zeros(0, dtype=torch.long)
        lengths = [each.max_length - prompt_length for each in criteria if type(each) is MaxLengthCriteria]
        self._others = [each for each in criteria if type(each) not in (EosTokenCriteria, MaxLengthCriteria)]
        self._prompt_length = prompt_length
        self.max_new_tokens = max(1, min([max_new_tokens, *lengths]))

    def of(self, text: Tensor, before: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """Look for ends among the tokens that were added.

        Args:
            text: LongTensor [rows, prompt + T], the tokens that were added included.
            before: New tokens of each row before them, LongTensor [rows] on the CPU.
            added: How many were added, likewise; at least 1.

        Returns:
            Which texts have ended, BoolTensor [rows] on the CPU, and how many of the added tokens belong to each,
            LongTensor [rows] on the CPU: up to and with the one that ends it.
        """
        places = torch.arange(int(added.max()))
        columns = (self._prompt_length + before[:, None] + places).clamp(max=text.shape[1] - 1)
        tokens = text.gather(1, sent(columns, text.device)).cpu()  # (rows, most added)
        stops = torch.isin(tokens, self._end_tokens) & (places < added[:, None])
        for row, place in (
            torch.stack(torch.meshgrid(torch.arange(len(tokens)), places, indexing="ij"), dim=-1).flatten(0, 1).tolist()
        ):
            if self._others and place < added[row] and not stops[row, :place].any():
                length = self._prompt_length + int(before[row]) + place + 1
                stops[row, place] |= any(self._asked(each, text[row : row + 1, :length]) for each in self._others)
        ended = stops.any(dim=1)
        belong = torch.where(ended, stops.long().argmax(dim=1) + 1, added)
        return ended | (before + belong >= self.max_new_tokens), belong

    @staticmethod
    def _asked(criterion: StoppingCriteria, text: Tensor) -> bool:
        """Ask a criterion about one row, [1, length]. It is not given scores."""
        return bool(torch.as_tensor(criterion(text, None)).all())
