"""Where each sequence of a batch ends: at an end-of-sequence token, a stop string, or a criterion of the caller.

In beam search, a source is finished once no running beam can take the place of a finished sequence.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria

from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.device import sent

_BEAM_CHECK = "_check_early_stop_heuristic"


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


@contextmanager
def finished_sources_noted(model: PreTrainedModel, decisions: Decisions, num_beams: int) -> Iterator[None]:
    """Note after each step of a beam search which sources are finished: no logits can change what they return.

    transformers finds it out for each source and tells nobody. So its method is watched; where a version has none of
    this name, nothing is noted.

    Args:
        model: The model that decodes inside the block.
        decisions: Their ``ended`` is updated for all beams of a source.
        num_beams: Beams a source.

    Yields:
        Nothing.
    """
    check = getattr(model, _BEAM_CHECK, None)
    if check is None:
        yield
        return

    def noted(**state: Any) -> Tensor:
        """Return transformers' answer, BoolTensor [sources, 1]: whether a running beam may still improve a source."""
        improves = check(**state)
        full = state["is_sent_finished"].all(dim=1) & (state["early_stopping"] is True)
        decisions.ended = (full | ~improves.squeeze(1)).repeat_interleave(num_beams)
        return improves

    vars(model)[_BEAM_CHECK] = noted
    try:
        yield
    finally:
        del vars(model)[_BEAM_CHECK]


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
