"""The KV cache of a decode with skipped layers, and the late KV computation.

The decoding semantics (Schuster et al. 2022, CALM, arXiv 2207.07061, sections 3.2 and 3.3.1, called state propagation
there): the keys and values of a token at a layer come from the hidden state with which the token arrived at that layer,
whether or not the layer ran. Here they are computed only when a later token runs the layer, for all tokens that still
owe them in one batch. The layer's own code does it, and is stopped where it passes its keys and values on: norm and
projections run, attention and MLP do not. A strategy whose sets of layers only shrink never needs that. The keys and
values of a layer that no later step runs are freed at once.

The prefill runs once for each source: beams, or several sampled sequences, are rows only from the first decode step
on (``once``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from hsdlab.decoding.arguments import CACHE, RowArguments, argument
from hsdlab.decoding.decisions import Decisions, Rows
from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.history import History
from hsdlab.decoding.prompt_rows import PromptRows
from hsdlab.decoding.shared_prompt import StepRows, TwoParts, can_split
from hsdlab.decoding.skipping import LayerCall, LayerRunner
from hsdlab.decoding.storage import LayerStorage
from hsdlab.decoding.timing import now_s
from hsdlab.errors import RunError, UserError


class _KeysAndValuesMade(Exception):
    """Stops the forward of a layer as soon as its keys and values are computed."""


class SkipCache(LayerRunner, DynamicCache):
    """Runs the layers that the decisions name, and holds the keys and values of one decode.

    Args:
        parts: The decoder layers, and their query projections.
        decisions: Say which rows run which layer.
        once: Compute the prompt once for each source, and not for each of its rows. Only for layers whose arguments
            have one entry for each row, or one for all.

    Attributes:
        executed: The layers that ran in each decode step: BoolTensor [rows or 1, layers] on the CPU, in the row order
            of that step.
        late_tokens: Tokens of each layer whose keys and values were computed late, LongTensor [layers].
        late_passes: Calls of each layer that computed them, LongTensor [layers].
        passes: Forward passes so far, the prefill included.
        peak_bytes: The most bytes allocated for keys and values at the end of a forward pass.
        readings_s: Clock readings, seconds; the cache adds one when the first decode step begins.
    """

    def __init__(self, parts: DecoderParts, decisions: Decisions, once: bool = False) -> None:
        super().__init__(config=parts.model.config.get_text_config(decoder=True))
        self._parts = parts
        self._index = {layer: i for i, layer in enumerate(parts.layers)}
        self._decisions = decisions
        self._once = once
        self._prompt_rows: PromptRows | None = None  # since the prefill began
        self._storages: list[LayerStorage | None] = [None] * parts.num_layers
        self._seen = 0
        self._prompt_length = 0
        self._row_arguments = RowArguments()
        self._split: StepRows | None = None  # where the prompt's keys and values are held apart
        self._called: Tensor | None = None  # the rows that the current layer was called with, on the device
        self._equal_rows: tuple[Tensor, Tensor] | None = None  # those of the last layer, on the CPU and on the device
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
        """Add the keys and values of the rows that run; [rows, heads, length, head dim] as in transformers."""
        if self._filling:
            raise _KeysAndValuesMade(key_states, value_states)
        if self._seen == 0:
            if self._decisions.needed_after(layer_idx, -1):
                copies = 1 if self._prompt_rows is None else self._prompt_rows.copies
                most = self._decisions.max_steps - 1
                storage = LayerStorage(key_states, value_states, copies, most, apart=self._split is not None)
                self._storages[layer_idx] = storage
            return key_states, value_states
        storage, token, called = self._storage(layer_idx), self._seen - self._prompt_length, self._called
        storage.reserve(token + 1)
        if called is None:
            storage.append(token, key_states, value_states)
        else:
            storage.write(called, token, key_states, value_states)
        keys, values = storage.read(token + 1)
        if storage.prompt is not None and self._split is not None:
            prompt_keys, prompt_values = storage.prompt
            return TwoParts(prompt_keys, keys, self._split), TwoParts(prompt_values, values, self._split)
        if called is None:
            return keys, values
        return keys.index_select(0, called), values.index_select(0, called)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Move the rows to those from which beam search continues, LongTensor [rows]."""
        rows = torch.arange(len(beam_idx), device=beam_idx.device)
        copies = self._decisions.rows_per_source(len(beam_idx))
        if torch.equal(beam_idx, rows):
            return
        if not torch.equal(beam_idx // copies, rows // copies):
            raise RunError("A beam moved to the rows of another prompt; decode with transformers' own beam search.")
        new_tokens = self._seen - self._prompt_length
        for storage in self._storages:
            if storage is not None and new_tokens > 0:
                storage.reorder(beam_idx, new_tokens)
        self._history.reorder(beam_idx)

    # Running a layer -----------------------------------------------------------------------------------------

    def run_layer(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Run a layer for the rows that the decisions name; the others skip it."""
        index = self._index[call.layer]
        length = hidden.shape[1]
        if self._seen == 0:
            hidden = self._run_prompt(index, call, hidden, args, kwargs)
        else:
            if index == 0:
                self._begin_step(call, hidden, args, kwargs)
            hidden = self._run_decode_step(index, call, hidden, args, kwargs)
            if self._decisions.looks_back:
                hidden = self._look_back(index, hidden)
        if index == self._parts.num_layers - 1:
            self._end_pass(length)
        return hidden

    def _run_prompt(self, index: int, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Run a layer over the prompt, for the first row of each source."""
        if self._prompt_rows is None:
            copies = self._decisions.rows_per_source(len(hidden)) if self._once else 1
            self._prompt_rows = PromptRows(len(hidden), copies, hidden.device)
            if copies > 1 and can_split(self._parts.model):
                self._split = StepRows(copies, hidden.shape[1])
        prompt = self._prompt_rows
        if index == 0:
            hidden = prompt.first(hidden)
        args, kwargs = prompt.arguments(args, kwargs)
        hidden = call(hidden, *args, **kwargs)
        return prompt.all(hidden) if index == self._parts.num_layers - 1 else hidden

    def _begin_step(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> None:
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
        self._row_arguments.forget()
        if self._prompt_rows is not None:
            self._prompt_rows.forget()
        self._seen += length
        self.passes += 1
        held = 0
        for index, storage in enumerate(self._storages):
            if storage is None:
                continue
            held += storage.nbytes
            if not self._decisions.needed_after(index, step):
                self._storages[index] = None
        self.peak_bytes = max(self.peak_bytes, held)

    def _run_decode_step(self, index: int, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        rows = self._decisions.rows_at(index)
        if rows is None:  # all rows
            self._fill(index, call, rows)
            if self._split is not None:
                mask = argument(call, "attention_mask", args, kwargs)
                self._split.begin_layer(mask, mask, None)
            output = call(hidden, *args, **kwargs)
            self._ask(index, rows, output, hidden)
            return output
        self._history.passed_by(index, rows, hidden)
        if len(rows) == 0:
            return hidden
        self._fill(index, call, rows)
        called = self._on_device(rows, hidden.device)
        some_args, some_kwargs = self._row_arguments.select(called, hidden.shape[0], args, kwargs)
        arrived = hidden.index_select(0, called)
        if self._split is not None:
            mask = argument(call, "attention_mask", args, kwargs)
            self._split.begin_layer(mask, argument(call, "attention_mask", some_args, some_kwargs), called)
        self._called = called
        try:
            output = call(arrived, *some_args, **some_kwargs)
        finally:
            self._called = None
        self._ask(index, rows, output, arrived)
        return hidden.index_copy(0, called, output)

    def _on_device(self, rows: Tensor, device: torch.device) -> Tensor:
        """Return rows on the device; the same tensor while they are the same."""
        if self._equal_rows is None or not torch.equal(self._equal_rows[0], rows):
            self._equal_rows = rows, rows.to(device)
        return self._equal_rows[1]

    def _storage(self, index: int) -> LayerStorage:
        storage = self._storages[index]
        if storage is None:
            raise RuntimeError(f"Layer {index} runs, and its keys and values were freed.")
        return storage

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
        storage = self._storage(index)
        storage.reserve(self._seen - self._prompt_length)
        storage.write(token_rows, token_steps, keys, values)
        self.late_tokens[index] += len(token_rows)
        self.late_passes[index] += 1


@contextmanager
def _no_queries(projection: nn.Module | None) -> Iterator[None]:
    """Let a layer's query projection, if it is a module of its own, return zeros without computing anything."""
    if projection is None:
        yield
        return
    size, own = projection.out_features, {name: value for name, value in vars(projection).items() if name == "forward"}
    vars(projection)["forward"] = lambda x: x.new_zeros(()).expand(*x.shape[:-1], size)
    try:
        yield
    finally:
        del vars(projection)["forward"]
        vars(projection).update(own)
