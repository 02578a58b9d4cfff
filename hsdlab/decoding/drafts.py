"""One draft step of verified decoding: each row of the batch is at its own step t, and runs the draft's layers of t."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from hsdlab.decoding.decisions import Decisions, Rows, rows_of
from hsdlab.decoding.device import RowsOnDevice, sent
from hsdlab.decoding.families import DecoderParts


@dataclass(frozen=True)
class Resumed:
    """The hidden states of some tokens of a pass, which an earlier pass computed up to a layer.

    Attributes:
        layer: The first layer that runs for these tokens.
        hidden: What arrives there, [rows, earlier tokens, d].
        mask: Which of the pass's tokens they are, BoolTensor [rows, tokens] on the CPU, in the first columns.
    """

    layer: int
    hidden: Tensor
    mask: Tensor

    def put(self, hidden: Tensor) -> Tensor:
        """Put them in their places.

        Args:
            hidden: What arrives at ``layer`` in the pass, [rows, tokens, d].

        Returns:
            The same with the hidden states of the earlier pass.
        """
        count = self.hidden.shape[1]
        taken = sent(self.mask[:, :count, None], hidden.device)
        return torch.cat([torch.where(taken, self.hidden, hidden[:, :count]), hidden[:, count:]], dim=1)


class DraftDecisions:
    """Which rows run which layer in a draft step; what :class:`Decisions` is to a decode step of equal rows.

    The rows that are at the same step form a group, for which the draft's strategy decides as for a batch.

    Args:
        decisions: Those of the draft's strategy, for a decode of T new tokens; not an oracle's.
        steps: t of each row, LongTensor [rows] on the CPU.
        drafting: BoolTensor [rows] on the CPU; the others run no layer.

    Attributes:
        executed: The layers of each row: BoolTensor [rows, layers] on the CPU; with a last dimension of 2 where
            attention and MLP run apart.
        drafting: As given.
        in_parts: Whether they do.
        may_fill: Whether a later draft of the round may run a layer that an earlier one skipped. It never does where
            the sets of layers only shrink, since each row drafts its own steps one after the other. After the round
            all of it is taken back.
        on_device: Copies indices of rows to the device.
    """

    def __init__(self, decisions: Decisions, steps: Tensor, drafting: Tensor) -> None:
        self.drafting = drafting
        self.may_fill = decisions.may_fill
        self.asks = decisions.asks
        self.on_device: RowsOnDevice = decisions.on_device
        self._groups: list[tuple[Tensor, Decisions]] = []
        for step in steps[drafting].unique().tolist():
            at_step = copy.copy(decisions)  # shares the count of what deciding costs
            at_step.begin_step(step, len(steps))
            self._groups.append((drafting & (steps == step), at_step))
        self.in_parts = any(group.in_parts for _, group in self._groups)
        self.executed = torch.zeros(
            len(steps), decisions.num_layers, *((2,) if self.in_parts else ()), dtype=torch.bool
        )

    def rows_at(self, layer: int) -> Rows:
        """Decide who runs a layer, and note it in ``executed``.

        Args:
            layer: Index of the layer that comes next.

        Returns:
            None if all rows run it, else the indices of those that do, LongTensor on the CPU.
        """
        for group, decisions in self._groups:
            self.executed[:, layer] |= group & _mask(decisions.rows_at(layer), group)
        return rows_of(self.executed[:, layer])

    def parts_at(self, layer: int) -> Tensor:
        """Decide who runs which part of a layer, and note it in ``executed``.

        Args:
            layer: Index of the layer that comes next.

        Returns:
            BoolTensor [rows, 2]: attention and MLP.
        """
        for group, decisions in self._groups:
            whole = None if decisions.in_parts else _mask(decisions.rows_at(layer), group)
            runs = decisions.parts_at(layer) if whole is None else whole[:, None]  # (rows or 1, 2 or 1)
            self.executed[:, layer] |= group[:, None] & runs
        return self.executed[:, layer]

    def after(self, layer: int, rows: Rows, output: Tensor, arrived: Tensor, parts: DecoderParts) -> None:
        """Have the draft's strategy decide who exits after a layer (:meth:`Decisions.after`).

        Args:
            layer: Index of the layer that ran.
            rows: The rows that ran it; None for all.
            output: Its output for them, [rows, d].
            arrived: Its input for them, [rows, d].
            parts: Gives the final norm and the head.
        """
        rows = torch.arange(len(self.drafting)) if rows is None else rows
        for group, decisions in self._groups:
            places = group[rows].nonzero().squeeze(1)
            if len(places) == len(rows):
                decisions.after(layer, rows, output, arrived, parts)
            elif len(places) > 0:
                chosen = sent(places, output.device)
                decisions.after(layer, rows[places], output[chosen], arrived[chosen], parts)


def _mask(rows: Rows, like: Tensor) -> Tensor:
    """Return the mask of some rows; None stands for all."""
    return torch.ones_like(like) if rows is None else torch.zeros_like(like).index_fill(0, rows, value=True)
