"""The hidden states of skipped tokens, kept until the late KV computation or the end of the decode."""

from typing import Any

import torch
from torch import Tensor

from hsdlab.decoding.arguments import position_arguments, select_rows
from hsdlab.decoding.decisions import Decisions, Rows
from hsdlab.decoding.skipping import LayerCall


class History:
    """Which tokens still owe keys and values at which layers, and the hidden states to compute them from.

    Beams change places after each step. The tensors kept here stay where they are: ``_origin`` maps the current rows to
    the rows of each earlier step.

    Args:
        decisions: Say which layers later steps may run. Where no layer needs a late KV computation, nothing is kept.
    """

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._arrived: list[dict[int, Tensor]] = []  # per step: layer -> hidden state [rows, 1, d]
        self._positions: list[dict[str, Any]] = []  # per step: the layers' arguments that depend on the position
        self._lacks = torch.zeros(0)  # [layers, steps, rows or 1], on the CPU; empty until a layer is skipped
        self._lacking_layers: set[int] = set()
        self._origin: Tensor | None = None  # [steps, rows], on the device; None while no beam has moved

    def begin_step(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> None:
        """Keep the arguments with which the layers of this step are called.

        Args:
            call: The call of layer 0; its signature names the arguments.
            hidden: The input of layer 0, [rows, 1, d].
            args: The other positional arguments of the call.
            kwargs: Its keyword arguments.
        """
        if not self._decisions.may_fill:
            return
        self._arrived.append({})
        self._positions.append(position_arguments(call, hidden, args, kwargs))
        if self._origin is not None:
            now = torch.arange(hidden.shape[0], device=hidden.device)[None]
            self._origin = torch.cat([self._origin, now])

    def reorder(self, beam_idx: Tensor) -> None:
        """Follow the beams to the rows from which beam search continues.

        Args:
            beam_idx: The old row of each new row, LongTensor [rows] on the device.
        """
        if not self._arrived:
            return
        if self._origin is None:
            self._origin = torch.arange(len(beam_idx), device=beam_idx.device).repeat(len(self._arrived), 1)
        self._origin = self._origin[:, beam_idx]
        if self._lacking_layers and not self._decisions.same_for_all_rows:
            self._lacks = self._lacks[:, :, beam_idx.cpu()]

    def passed_by(self, layer: int, rows: Rows, hidden: Tensor) -> None:
        """Note who skips a layer in the current step.

        Args:
            layer: Index of the layer.
            rows: The rows that run the layer; all others skip it.
            hidden: The hidden states that arrived at the layer, [rows of the batch, 1, d]; kept, not copied.
        """
        step = len(self._arrived) - 1
        if not self._decisions.may_fill or not self._decisions.needed_after(layer, step):
            return
        if self._lacks.numel() == 0:
            width = 1 if self._decisions.same_for_all_rows else hidden.shape[0]
            shape = (self._decisions.num_layers, self._decisions.max_steps, width)
            self._lacks = torch.zeros(shape, dtype=torch.bool)
        self._arrived[step][layer] = hidden
        self._lacks[layer, step] = True
        self._lacks[layer, step, rows] = False
        self._lacking_layers.add(layer)

    def take_waiting(self, layer: int, rows: Rows) -> tuple[Tensor, dict[str, Any], Tensor, Tensor] | None:
        """Take the tokens of earlier steps that still owe keys and values at a layer; afterwards they owe none there.

        Args:
            layer: Index of the layer that is about to run.
            rows: The rows that will run it; None for all. Tokens of other rows stay.

        Returns:
            Their hidden states [tokens, 1, d], the layer's other arguments for them, their rows [tokens] and their
            steps [tokens]; None if there are none.
        """
        if layer not in self._lacking_layers:
            return None
        now = len(self._arrived) - 1
        lacks = self._lacks[layer, :now]  # (steps, rows or 1)
        if rows is not None:
            asked = torch.zeros_like(lacks)
            asked[:, rows] = True
            lacks = lacks & asked
        hidden, positions, token_rows, token_steps = [], [], [], []
        for step in lacks.any(dim=1).nonzero().squeeze(1).tolist():
            state = self._arrived[step][layer]
            count = state.shape[0]
            here = torch.arange(count) if self._decisions.same_for_all_rows else lacks[step].nonzero().squeeze(1)
            here = here.to(state.device)
            then = here if self._origin is None else self._origin[step, here]
            hidden.append(state.index_select(0, then))
            positions.append(select_rows(self._positions[step], then, count, expand=True))
            token_rows.append(here)
            token_steps.append(torch.full_like(here, step))
        if not hidden:
            return None
        self._lacks[layer, :now] &= ~lacks
        if not self._lacks[layer].any():
            self._lacking_layers.discard(layer)
        return torch.cat(hidden), _concatenated(positions), torch.cat(token_rows), torch.cat(token_steps)


def _concatenated(values: list[Any]) -> Any:
    """Concatenate the equally nested values of several steps along the first dimension of their tensors."""
    first = values[0]
    if isinstance(first, Tensor) and first.dim() > 0:
        return torch.cat(values)
    if isinstance(first, dict):
        return {name: _concatenated([value[name] for value in values]) for name in first}
    if type(first) in (tuple, list):
        return type(first)(_concatenated(list(items)) for items in zip(*values, strict=True))
    return first
