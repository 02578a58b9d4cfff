"""Rows whose text has ended, left out of the decode steps of a batch that goes on for other rows.

transformers pads such a row until the last one ends, and ignores its logits; in beam search, it goes on with the beams
of a finished source and keeps none of them. Leaving a row out costs one copy of the keys and values of the others, so
it waits until enough rows have ended.
"""

import torch
from torch import Tensor

from hsdlab.decoding.arguments import RowArguments
from hsdlab.decoding.decisions import Decisions

SHARE_ENDED = 0.25
"""The share of the remaining rows that has to have ended before they are left out."""

SHARE_FINISHED = 0.06
"""The same with several rows a source, which are many: arithmetic then bounds a step, and each row less pays."""


class LiveRows:
    """The rows of a batch for which the layers still run.

    Args:
        decisions: Their ``ended`` says which texts have ended.

    Attributes:
        counts: The rows that ran in each decode step.
    """

    def __init__(self, decisions: Decisions) -> None:
        self.counts: list[int] = []
        self._decisions = decisions
        self._rows = 0
        self._live: Tensor | None = None
        self._arguments = RowArguments()

    def leave_out(self, rows: int, device: torch.device) -> Tensor | None:
        """Leave out the rows that have ended, if they are enough.

        Args:
            rows: Rows of the batch.
            device: Of the model.

        Returns:
            Which of the rows that ran so far still run, LongTensor on the device; None for all of them.
        """
        self._rows = rows
        live = torch.arange(rows) if self._live is None else self._live.cpu()
        self.counts.append(len(live))
        ended = self._decisions.ended
        if ended is None:
            return None
        stay = (~ended.cpu()[live]).nonzero().squeeze(1)
        share = SHARE_ENDED if self._decisions.rows_per_source(rows) == 1 else SHARE_FINISHED
        if len(stay) == 0 or len(stay) > (1 - share) * len(live):
            return None
        self._live = live[stay].to(device)
        self.counts[-1] = len(stay)
        return stay.to(device)

    def moved(self, beam_idx: Tensor) -> Tensor:
        """Say where the rows that run continue from, among themselves.

        Args:
            beam_idx: The row that each row of the batch continues from, of the same source, IntTensor [rows].

        Returns:
            The same of the rows that run, as places among them.
        """
        if self._live is None:
            return beam_idx
        places = torch.zeros_like(beam_idx)
        places[self._live] = torch.arange(len(self._live), dtype=beam_idx.dtype, device=beam_idx.device)
        return places[beam_idx[self._live]]

    def enter(self, index: int, hidden: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, tuple, dict]:
        """Select what a layer is called with.

        Args:
            index: Of the layer. Layer 0 gets all rows, the others those that run.
            hidden: The hidden state that arrives, [rows, 1, d].
            args: The positional arguments of the call.
            kwargs: Its keyword arguments.

        Returns:
            All three for the rows that run.
        """
        if self._live is None:
            return hidden, args, kwargs
        args, kwargs = self._arguments.select(self._live, self._rows, args, kwargs)
        return (hidden.index_select(0, self._live) if index == 0 else hidden), args, kwargs

    def leave(self, hidden: Tensor) -> Tensor:
        """Give all rows a hidden state after the last layer: zeros to those that were left out.

        Args:
            hidden: Of the rows that run, [rows, 1, d].

        Returns:
            Of all rows of the batch.
        """
        self._arguments.forget()
        if self._live is None:
            return hidden
        return hidden.new_zeros(self._rows, *hidden.shape[1:]).index_copy(0, self._live, hidden)
