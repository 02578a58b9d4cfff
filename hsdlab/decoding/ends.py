"""Where each row of a batch ends: at an end-of-sequence token, a stop string, or a criterion of the caller's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from hsdlab.decoding.decisions import Decisions


class RowEnds(StoppingCriteria):
    """Asks the criteria and notes at which token each row ended: transformers goes on padding it, and does not tell.

    Args:
        criteria: Which end a row, besides the end-of-sequence tokens.
        eos_token_id: The end-of-sequence tokens, which transformers itself heeds.
        decisions: Are told which rows have ended.
    """

    def __init__(
        self, criteria: Sequence[StoppingCriteria], eos_token_id: int | list[int] | None, decisions: Decisions
    ) -> None:
        self._criteria = criteria
        self._eos_token_id = eos_token_id
        self._decisions = decisions
        self._live: list[Tensor] = []  # BoolTensor [rows] for each new token: no end before it

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return which rows end by the criteria, BoolTensor [rows]."""
        stops = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for criterion in self._criteria:
            stops |= torch.as_tensor(criterion(input_ids, scores, **kwargs), dtype=torch.bool, device=stops.device)
        ended = stops.cpu() | is_end(input_ids[:, -1], self._eos_token_id).cpu()
        before = self._decisions.ended
        self._live.append(torch.ones_like(ended) if before is None else ~before)
        self._decisions.ended = ended if before is None else before | ended
        return stops

    def real_tokens(self) -> Tensor:
        """Return how many new tokens each row has, that with which it ends included: LongTensor [rows]."""
        return torch.stack(self._live).sum(dim=0)


def real_tokens_of(new_tokens: Tensor, eos_token_id: int | list[int] | None) -> Tensor:
    """Real new tokens of each row, its end-of-sequence token included: [rows, new] to [rows]."""
    rows, width = new_tokens.shape
    ends = is_end(new_tokens, eos_token_id)
    first = ends.long().argmax(dim=1) + 1
    return torch.where(ends.any(dim=1), first, torch.full((rows,), width))


def is_end(tokens: Tensor, eos_token_id: int | list[int] | None) -> Tensor:
    """Tell which tokens are an end of sequence."""
    ends = torch.tensor([] if eos_token_id is None else eos_token_id, dtype=torch.long, device=tokens.device)
    return torch.isin(tokens, ends.reshape(-1))
