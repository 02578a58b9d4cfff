"""The key/value cache of a decode whose skipped entries are filled lazily.

The law (Schuster et al. 2022, CALM, arXiv 2207.07061, sections 3.2 and 3.3.1, called state propagation there): the
keys and values of a token at a layer come from the hidden state with which the token arrived at that layer, whether
or not the layer ran. Here they are made only when a later token runs the layer, for all waiting tokens in one batch,
by the layer's own code, stopped where it hands its keys and values over: norm and projections run, attention and MLP
do not. A strategy whose sets of layers only shrink never needs that, and what no later step runs is freed at once.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from hsdlab.decoding.decisions import Decisions, Rows
from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.skipping import LayerCall, LayerRunner
from hsdlab.decoding.timing import now_s


class _KeysAndValuesMade(Exception):
    """Stops a layer's forward where its keys and values are ready."""


class SkipCache(LayerRunner, DynamicCache):
    """Runs the layers that the decisions ask for, and holds the keys and values of one decode.

    Args:
        parts: The model's parts.
        decisions: Who runs which layer.

    Attributes:
        executed: Per decode step, the layers that ran: BoolTensor [rows or 1, layers] on the CPU, in the row order
            of that step.
        filled: Number of (token, layer) pairs whose keys and values were made late.
        peak_bytes: The most bytes of keys and values held at the end of a pass.
        readings_s: Clock readings, seconds; the cache adds one when the first decode step begins.
    """

    def __init__(self, parts: DecoderParts, decisions: Decisions) -> None:
        super().__init__(config=parts.model.config.get_text_config(decoder=True))
        self._parts = parts
        self._index = {layer: i for i, layer in enumerate(parts.layers)}
        self._decisions = decisions
        self._seen = 0
        self._prompt_length = 0
        self._rows: Rows = None  # the rows that the layer now running was called with
        self._filling = False
        self._history = _History(decisions)
        self.executed: list[Tensor] = []
        self.filled = 0
        self.peak_bytes = 0
        self.readings_s: list[float] = []

    # What transformers asks of a cache -----------------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far, whatever the layer holds of them."""
        return self._seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Every layer that runs has the keys of all tokens."""
        return self._seen + query_length, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of the rows that run; [rows, heads, length, head dim] as in transformers."""
        if self._filling:
            raise _KeysAndValuesMade(key_states, value_states)
        if self._rows is None:
            return self.layers[layer_idx].update(key_states, value_states)
        storage, rows = self.layers[layer_idx], self._rows.to(key_states.device)
        self._grow(layer_idx, self._seen + 1)
        storage.keys[rows, :, -1] = key_states[:, :, 0]
        storage.values[rows, :, -1] = value_states[:, :, 0]
        return storage.keys.index_select(0, rows), storage.values.index_select(0, rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search goes on from the rows ``beam_idx`` [rows]."""
        super().reorder_cache(beam_idx)
        self._history.reorder(beam_idx)

    # Running a layer -----------------------------------------------------------------------------------------

    def run_layer(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Run a layer for the rows that the decisions name; the others pass by."""
        index = self._index[call.layer]
        length = hidden.shape[1]
        if index == 0:
            self._begin_pass(call, hidden, args, kwargs)
        if self._seen == 0:
            hidden = call(hidden, *args, **kwargs)
        else:
            hidden = self._run_decode_step(index, call, hidden, args, kwargs)
        if index == self._parts.num_layers - 1:
            self._end_pass(length)
        return hidden

    def _begin_pass(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> None:
        if self._seen == 0:
            return
        if hidden.shape[1] != 1:
            raise ValueError(
                f"A decode step came with {hidden.shape[1]} tokens; expected 1. Assisted decoding and chunked prompts "
                "cannot be combined with skipped layers."
            )
        if not self.executed:
            self.readings_s.append(now_s(hidden.device))
        self._decisions.begin_step(len(self.executed), hidden.shape[0])
        self._history.begin_step(call, hidden, args, kwargs)

    def _end_pass(self, length: int) -> None:
        step = len(self.executed) - 1 if self._seen == 0 else len(self.executed)
        if self._seen == 0:
            self._prompt_length = length
        else:
            self.executed.append(self._decisions.executed)
        self._seen += length
        held = 0
        for index, storage in enumerate(self.layers):
            if not storage.is_initialized:
                continue
            held += storage.keys.nbytes + storage.values.nbytes
            if not self._decisions.needed_after(index, step):
                storage.reset()
        self.peak_bytes = max(self.peak_bytes, held)

    def _run_decode_step(self, index: int, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        rows = self._decisions.rows_at(index)
        if rows is None:  # all rows
            self._fill(index, call, rows)
            output = call(hidden, *args, **kwargs)
            self._ask(index, rows, output, hidden)
            return output
        self._history.passed_by(index, rows, hidden)
        if len(rows) == 0:
            return hidden
        self._fill(index, call, rows)
        device_rows = rows.to(hidden.device)
        args, kwargs = select_rows((args, kwargs), device_rows, hidden.shape[0])
        arrived = hidden.index_select(0, device_rows)
        self._rows = rows
        try:
            output = call(arrived, *args, **kwargs)
        finally:
            self._rows = None
        self._ask(index, rows, output, arrived)
        return hidden.index_copy(0, device_rows, output)

    def _ask(self, index: int, rows: Rows, output: Tensor, arrived: Tensor) -> None:
        if not self._decisions.asks:
            return
        last = output[:, -1]
        self._decisions.after(index, rows, last, arrived[:, -1], lambda: self._parts.logits(last))

    # Late keys and values ------------------------------------------------------------------------------------

    def _fill(self, index: int, call: LayerCall, rows: Rows) -> None:
        """Make the keys and values that ``rows`` still lack at this layer, in one batch."""
        waiting = self._history.take_waiting(index, rows)
        if waiting is None:
            return
        hidden, positions, token_rows, token_steps = waiting  # [tokens, 1, d], …, [tokens], [tokens]
        self._filling = True
        try:
            with _no_queries(self._parts.queries[index]):
                call(hidden, **positions)
        except _KeysAndValuesMade as made:
            keys, values = made.args  # [tokens, heads, 1, head dim] each
        finally:
            self._filling = False
        self._grow(index, self._seen)
        storage = self.layers[index]
        columns = self._prompt_length + token_steps
        storage.keys[token_rows, :, columns] = keys[:, :, 0]
        storage.values[token_rows, :, columns] = values[:, :, 0]
        self.filled += len(token_rows)

    def _grow(self, index: int, length: int) -> None:
        """Extend a layer's storage to ``length`` tokens with zeros, which are written before they are read."""
        storage = self.layers[index]
        lacking = length - storage.keys.shape[-2]
        if lacking > 0:
            storage.keys = nn.functional.pad(storage.keys, (0, 0, 0, lacking))
            storage.values = nn.functional.pad(storage.values, (0, 0, 0, lacking))


class _History:
    """What skipped tokens leave behind: with what they arrived where, and at which layers they lack an entry.

    Beams change places after each step. Nothing kept here is moved then: ``_origin`` maps the rows of now to the
    rows of each earlier step.
    """

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._arrived: list[dict[int, Tensor]] = []  # per step: layer -> hidden state [rows, 1, d]
        self._positions: list[dict[str, Any]] = []  # per step: the layers' arguments that depend on the position
        self._lacks = torch.zeros(0)  # [layers, steps, rows or 1], on the CPU; empty until a layer is passed by
        self._lacking_layers: set[int] = set()
        self._origin: Tensor | None = None  # [steps, rows], on the device; None while no beam has moved

    def begin_step(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> None:
        if not self._decisions.may_fill:
            return
        self._arrived.append({})
        self._positions.append(_position_arguments(call, hidden, args, kwargs))
        if self._origin is not None:
            now = torch.arange(hidden.shape[0], device=hidden.device)[None]
            self._origin = torch.cat([self._origin, now])

    def reorder(self, beam_idx: Tensor) -> None:
        if not self._arrived:
            return
        if self._origin is None:
            self._origin = torch.arange(len(beam_idx), device=beam_idx.device).repeat(len(self._arrived), 1)
        self._origin = self._origin[:, beam_idx]
        if self._lacking_layers and not self._decisions.same_for_all_rows:
            self._lacks = self._lacks[:, :, beam_idx.cpu()]

    def passed_by(self, layer: int, rows: Rows, hidden: Tensor) -> None:
        """All but ``rows`` pass ``layer`` by in the step that now runs."""
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
        """The tokens before this step that lack an entry at ``layer`` for ``rows``, no longer waiting afterwards.

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


@contextmanager
def _no_queries(projection: nn.Module | None) -> Iterator[None]:
    """Have a layer's query projection, if it is a module of its own, give zeros without computing anything."""
    if projection is None or "forward" in vars(projection):
        yield
        return
    size = projection.out_features
    vars(projection)["forward"] = lambda x: x.new_zeros(()).expand(*x.shape[:-1], size)
    try:
        yield
    finally:
        del vars(projection)["forward"]


def select_rows(value: Any, rows: Tensor, count: int, expand: bool = False) -> Any:
    """Take ``rows`` of every tensor in ``value`` (nested tuples, lists and dicts) that has one entry for each row.

    Args:
        value: A layer's arguments.
        rows: Indices [n], on the device.
        count: The number of rows there are.
        expand: Also repeat for each row the tensors that all rows share (first dimension 1).
    """
    if isinstance(value, Tensor) and value.dim() > 0:
        if value.shape[0] == count and (count > 1 or expand):
            return value.index_select(0, rows)
        if expand and value.shape[0] == 1:
            return value.expand(len(rows), *value.shape[1:])
        return value
    if isinstance(value, dict):
        return {name: select_rows(item, rows, count, expand) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(select_rows(item, rows, count, expand) for item in value)
    return value


def _concatenated(values: list[Any]) -> Any:
    """Join the equally nested values of several tokens along the first dimension of their tensors."""
    first = values[0]
    if isinstance(first, Tensor) and first.dim() > 0:
        return torch.cat(values)
    if isinstance(first, dict):
        return {name: _concatenated([value[name] for value in values]) for name in first}
    if type(first) in (tuple, list):
        return type(first)(_concatenated(list(items)) for items in zip(*values, strict=True))
    return first


def _position_arguments(call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> dict[str, Any]:
    """A layer's arguments by name, without the hidden state, with no mask (it is used after keys and values)."""
    parameters = call.signature.parameters
    bound = call.signature.bind(hidden, *args, **kwargs).arguments
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound.update(bound.pop(name, {}))
    bound.pop(next(iter(parameters)))
    return {name: None if name == "attention_mask" else value for name, value in bound.items()}
