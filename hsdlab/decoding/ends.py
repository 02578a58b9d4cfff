"""Where each sequence of a batch ends: at an end-of-sequence token, a stop string, or a criterion of the caller."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.device import sent


class RowEnds(StoppingCriteria):
    """Notes at which token each sequence ended, on the device. transformers only goes on padding it, and does not tell.

    Args:
        criteria: What ends a sequence besides the end-of-sequence tokens; may be empty.
        eos_token_id: The end-of-sequence tokens, at which transformers itself ends a sequence; None for none.
        decisions: Their ``ended`` is updated after each new token.
    """

    def __init__(
        self, criteria: Sequence[StoppingCriteria], eos_token_id: int | list[int] | None, decisions: Decisions
    ) -> None:
        self._criteria = criteria
        self._end_tokens = _end_tokens(eos_token_id)
        self._decisions = decisions
        self._live: list[Tensor] = []  # BoolTensor [rows] for each new token: no end before it

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return which sequences end by the criteria, BoolTensor [rows]."""
        stops = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for criterion in self._criteria:
            stops |= torch.as_tensor(criterion(input_ids, scores, **kwargs), dtype=torch.bool, device=stops.device)
        self._end_tokens = sent(self._end_tokens, stops.device)
        ended = stops | torch.isin(input_ids[:, -1], self._end_tokens)
        before = self._decisions.ended
        self._live.append(torch.ones_like(ended) if before is None else ~before)
        self._decisions.ended = ended if before is None else before | ended
        return stops

    def real_tokens(self) -> Tensor:
        """Count the new tokens of each sequence.

        Returns:
            LongTensor [rows] on the CPU. The token with which a sequence ends counts, padding does not.
        """
        return torch.stack(self._live).sum(dim=0).cpu()


def real_tokens_of(new_tokens: Tensor, eos_token_id: int | list[int] | None) -> Tensor:
    """Count the new tokens of each sequence from the tokens themselves, where only end-of-sequence tokens end one.

    Args:
        new_tokens: The text after the prompt, LongTensor [rows, new] on the CPU.
        eos_token_id: The end-of-sequence tokens; None for none.

    Returns:
        LongTensor [rows]: up to and with the first end-of-sequence token; all of ``new`` where there is none.
    """
    rows, width = new_tokens.shape
    ends = torch.isin(new_tokens, _end_tokens(eos_token_id))
    first = ends.long().argmax(dim=1) + 1
    return torch.where(ends.any(dim=1), first, torch.full((rows,), width))


def _end_tokens(eos_token_id: int | list[int] | None) -> Tensor:
    return torch.tensor([] if eos_token_id is None else eos_token_id, dtype=torch.long).reshape(-1)
