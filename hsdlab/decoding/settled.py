"""Logits that a confidence check has computed for a token that then exited: they are the token's own.

The model's own head is applied at the end of a decode step, to the state at the exit, from which an intermediate
prediction was made already. Inside :func:`settled_logits` these logits are handed over, and the head is applied to the
other rows only.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.families import DecoderParts


@contextmanager
def settled_logits(parts: DecoderParts, decisions: Decisions) -> Iterator[None]:
    """Take the logits of tokens that exited from the checks, inside the block, on a CPU.

    Args:
        parts: The model's head.
        decisions: Of the strategy, which hold the logits of the current step.

    Yields:
        Nothing.
    """
    if not decisions.asks or parts.model.device.type != "cpu":  # on a GPU, choosing rows would wait for it
        yield
        return
    head = parts.head
    before = vars(head).get("forward")
    own_forward = head.forward

    def forward(hidden: Tensor) -> Tensor:
        """Apply the head: [rows, tokens, d] to [rows, tokens, vocabulary]."""
        settled = None if decisions.asking else decisions.take_settled(parts)
        if settled is None:
            return own_forward(hidden)
        rows, logits = settled
        whole = logits.new_empty(len(hidden), 1, logits.shape[-1])
        whole[rows] = logits[:, None]
        if len(rows) < len(hidden):
            others = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device).index_fill(0, rows, value=False)
            whole[others] = own_forward(hidden[others])
        return whole

    vars(head)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            vars(head).pop("forward", None)
        else:
            vars(head)["forward"] = before
