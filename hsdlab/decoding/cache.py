"""The KV cache of a decode with skipped layers, and the late KV computation.

The decoding semantics (Schuster et al. 2022, CALM, arXiv 2207.07061, sections 3.2 and 3.3.1, called state propagation
there): the keys and values of a token at a layer come from the hidden state with which the token arrived at that layer,
whether or not the layer ran. Here they are computed only when a later token runs the layer, for all tokens that still
owe them in one batch. The layer's own code does it, and is stopped where it passes its keys and values on: norm and
projections run, attention and MLP do not. A strategy whose sets of layers only shrink never needs that. The keys and
values of a layer that no later step runs are freed at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from hsdlab.decoding.decisions import Decisions, Rows
from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.history import CACHE, History, select_rows
from hsdlab.decoding.skipping import LayerCall, LayerRunner
from hsdlab.decoding.timing import now_s
from hsdlab.errors import UserError


class _KeysAndValuesMade(Exception):
    """Stops the forward of a layer as soon as its keys and values are computed."""


class SkipCache(LayerRunner, DynamicCache):
    """Runs the layers that the decisions name, and holds the keys and values of one decode.

    Args:
        parts: The decoder layers, and their query projections.
        decisions: Say which rows run which layer.

    Attributes:
        executed: The layers that ran in each decode step: BoolTensor [rows or 1, layers] on the CPU, in the row order
            of that step.
        late_tokens: Tokens of each layer whose keys and values were computed late, LongTensor [layers].
        late_passes: Calls of each layer that computed them, LongTensor [layers].
        passes: Forward passes so far, the prefill included.
        peak_bytes: The most bytes of keys and values held at the end of a forward pass.
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
        self._history = History(decisions)
        self._outputs: list[Tensor] = []  # of the layers of this step, for an oracle
        self.executed: list[Tensor] = []
        self.late_tokens = torch.zeros(parts.num_layers, dtype=torch.long)
        self.late_passes = torch.zeros(parts.num_layers, dtype=torch.long)
        self.passes = 0
        self.peak_bytes = 0
        self.readings_s: list[float] = []

    # What transformers calls on a cache ----------------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens so far, also where the layer has no keys and values of some of them."""
        return self._seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return the sizes for the keys of all tokens, which every layer has when it runs."""
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
        """Move the rows to those from which beam search continues, LongTensor [rows]."""
        super().reorder_cache(beam_idx)
        self._history.reorder(beam_idx)

    # Running a layer -----------------------------------------------------------------------------------------

    def run_layer(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Run a layer for the rows that the decisions name; the others skip it."""
        index = self._index[call.layer]
        length = hidden.shape[1]
        if index == 0:
            self._begin_pass(call, hidden, args, kwargs)
        if self._seen == 0:
            hidden = call(hidden, *args, **kwargs)
        else:
            hidden = self._run_decode_step(index, call, hidden, args, kwargs)
            if self._decisions.looks_back:
                hidden = self._look_back(index, hidden)
        if index == self._parts.num_layers - 1:
            self._end_pass(length)
        return hidden

    def _begin_pass(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> None:
        if self._seen == 0:
            return
        if hidden.shape[1] != 1:
            raise UserError(
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
        self.passes += 1
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
        if self._decisions.asks:
            self._decisions.after(index, rows, output[:, -1], arrived[:, -1], self._parts)

    def _look_back(self, index: int, output: Tensor) -> Tensor:
        """After the last layer, return the hidden state of each row at the exit layer that an oracle names."""
        self._outputs.append(output)
        if index < self._parts.num_layers - 1:
            return output
        outputs = torch.stack(self._outputs)  # (layers, rows, 1, d)
        self._outputs.clear()
        exits = self._decisions.look_back(outputs[:, :, -1], self._parts)
        hidden = outputs[exits.to(output.device), torch.arange(len(exits), device=output.device)]  # (rows, 1, d)
        if not self._decisions.keeps_full_entries:
            for layer in range(1, self._parts.num_layers):
                self._history.passed_by(layer, (exits >= layer).nonzero().squeeze(1), hidden)
        return hidden

    # Late keys and values ------------------------------------------------------------------------------------

    def _fill(self, index: int, call: LayerCall, rows: Rows) -> None:
        """Compute the keys and values that ``rows`` still owe at this layer, in one batch."""
        waiting = self._history.take_waiting(index, rows)
        if waiting is None:
            return
        hidden, positions, token_rows, token_steps = waiting  # [tokens, 1, d], …, [tokens], [tokens]
        self._filling = True
        try:
            with _no_queries(self._parts.queries[index]):
                call(hidden, **{name: self if value is CACHE else value for name, value in positions.items()})
        except _KeysAndValuesMade as made:
            keys, values = made.args  # [tokens, heads, 1, head dim] each
        finally:
            self._filling = False
        self._grow(index, self._seen)
        storage = self.layers[index]
        columns = self._prompt_length + token_steps
        storage.keys[token_rows, :, columns] = keys[:, :, 0]
        storage.values[token_rows, :, columns] = values[:, :, 0]
        self.late_tokens[index] += len(token_rows)
        self.late_passes[index] += 1

    def _grow(self, index: int, length: int) -> None:
        """Extend a layer's storage to ``length`` tokens with zeros, which are written before they are read."""
        storage = self.layers[index]
        lacking = length - storage.keys.shape[-2]
        if lacking > 0:
            storage.keys = nn.functional.pad(storage.keys, (0, 0, 0, lacking))
            storage.values = nn.functional.pad(storage.values, (0, 0, 0, lacking))


@contextmanager
def _no_queries(projection: nn.Module | None) -> Iterator[None]:
    """Let a layer's query projection, if it is a module of its own, return zeros without computing anything."""
    if projection is None or "forward" in vars(projection):
        yield
        return
    size = projection.out_features
    vars(projection)["forward"] = lambda x: x.new_zeros(()).expand(*x.shape[:-1], size)
    try:
        yield
    finally:
        del vars(projection)["forward"]
