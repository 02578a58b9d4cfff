"""The KV cache of a compiled decode: tensors of one shape, written in place at addresses that never change.

A compiled layer, and a CUDA graph, read and write the same memory in every step. So a decode step is fed by copies into
:class:`StepBuffers`, and keys and values lie in blocks [rows, heads, columns, head dim]. Columns that hold no token yet
are closed by the mask. :class:`StaticCache` runs the prefill as it is, and hands the layers of a decode step to a
function that is compiled.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from hsdlab.decoding.arguments import bound_arguments
from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.families import DecoderParts, decoder_config
from hsdlab.decoding.prompt_rows import PromptRows
from hsdlab.decoding.skipping import LayerCall, LayerRunner
from hsdlab.decoding.storage import token_numbers
from hsdlab.decoding.timing import now_s

COLUMNS = 128
"""Blocks have a multiple of this many columns, so that prompts of similar length share compiled code and graphs."""


class StepBuffers:
    """What every decode step reads and writes. It outlives a decode, and serves the next one of the same shape.

    Args:
        rows: Rows of a decode step.
        columns: Tokens that a row can hold.
        model: Its device, and the mask that its attention takes: true and false for "sdpa", added numbers for "eager".

    Attributes:
        token_ids: The input of the step, [rows, 1].
        positions: Its positions, [rows, 1].
        column: The column that the step writes, [1].
        mask: What the step attends to, [rows, 1, 1, columns].
        blocks: Keys and values of each layer that some step has run, [rows, heads, columns, head dim] each.
        logits: The output of the step, [rows, 1, vocabulary]; None before the first.
    """

    def __init__(self, rows: int, columns: int, model: Any) -> None:
        device, dtype = model.device, model.dtype
        added = decoder_config(model.config)._attn_implementation == "eager"
        self._closed: float = torch.finfo(dtype).min if added else False
        self._open: float = 0.0 if added else True
        self.token_ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.token_ids)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.mask = torch.full((rows, 1, 1, columns), self._closed, dtype=dtype if added else torch.bool, device=device)
        self.blocks: dict[int, tuple[Tensor, Tensor]] = {}
        self.logits: Tensor | None = None

    def write_prompt(self, layer: int, keys: Tensor, values: Tensor, copies: int) -> None:
        """Write a layer's keys and values of the prompt.

        Args:
            layer: Index of the layer.
            keys: [sources, heads, prompt, head dim].
            values: Likewise.
            copies: Consecutive rows that share a source.
        """
        sources, heads, length, _ = keys.shape
        if layer not in self.blocks:
            shape = (sources * copies, heads, self.mask.shape[3])
            with torch.inference_mode(False):  # so that any later decode may write
                self.blocks[layer] = keys.new_empty(*shape, keys.shape[3]), values.new_empty(*shape, values.shape[3])
        for block, part in zip(self.blocks[layer], (keys, values), strict=True):
            block.unflatten(0, (sources, copies))[:, :, :, :length] = part[:, None]
            block[:, :, length:] = 0  # what is masked is still multiplied by 0, which NaN would survive

    def open_prompt(self, length: int, attention_mask: Tensor | None) -> None:
        """Open the columns of the prompt, and close all others.

        Args:
            length: Of the prompt, tokens.
            attention_mask: [rows, length or more], 1 for tokens and 0 for padding; None where there is no padding.
        """
        self.mask.fill_(self._closed)
        prompt = self.mask[:, 0, 0, :length]
        if attention_mask is None:
            prompt.fill_(self._open)
        else:
            prompt.masked_fill_(attention_mask[:, :length].bool(), self._open)

    def feed(self, token_ids: Tensor, positions: Tensor, column: int) -> None:
        """Set the input of a step. Nothing waits for the device.

        Args:
            token_ids: [rows, 1].
            positions: [rows, 1].
            column: Where the step writes its keys and values.
        """
        self.token_ids.copy_(token_ids, non_blocking=True)
        self.positions.copy_(positions, non_blocking=True)
        self.column.fill_(column)
        self.mask[..., column].fill_(self._open)

    def reorder(self, rows: Tensor, first: int, stop: int) -> None:
        """Move new tokens between rows; the prompt is that of both rows.

        Args:
            rows: The rows that become the rows 0, 1 …, LongTensor [rows].
            first: The first column to move.
            stop: The column after the last.
        """
        for pair in self.blocks.values():
            for block in pair:
                block[:, :, first:stop] = block[:, :, first:stop].index_select(0, rows)


class LayerBlock:
    """What a layer is given as its KV cache in a compiled step: one token, written into the layer's own blocks.

    Args:
        keys: [rows, heads, columns, head dim].
        values: Likewise.
        column: Where to write, LongTensor [1].
    """

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor) -> None:
        self._keys, self._values, self._column = keys, values, column

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the keys and values of the new token.

        Args:
            keys: [rows, heads, 1, head dim].
            values: Likewise.
            *args: The index of the layer, which is known.
            **kwargs: Ignored.

        Returns:
            The whole blocks, [rows, heads, columns, head dim] each.
        """
        self._keys.index_copy_(2, self._column, keys)
        self._values.index_copy_(2, self._column, values)
        return self._keys, self._values


RunLayer = Callable[[Callable[..., Any], nn.Module, Tensor, Tensor, Tensor, Tensor, str, dict[str, Any]], Tensor]
"""Runs a layer in a decode step: see :func:`hsdlab.decoding.compiled.run_layer`."""


class StaticCache(LayerRunner, DynamicCache):
    """Runs the layers of a schedule, and holds the keys and values of one decode in :class:`StepBuffers`.

    Args:
        parts: The decoder layers.
        decisions: Know the layers of every step, which are the same for all rows and need no late KV computation.
        buffers: For as many rows as a decode step has.
        run_layer: Runs a layer in a decode step.

    Attributes:
        layers_now: The layers that a decode step runs; set before the model is called.
        executed: As in :class:`~hsdlab.decoding.cache.SkipCache`, like the following.
        prompt_executed: None, for all layers.
        prompt_tokens: Of the prefill.
        prompt_keys: The same.
        cached_numbers: Of a token in each layer.
        late_tokens: Zeros, like the following.
        late_passes: Of calls.
        prompt_late_tokens: Of the prefill.
        prompt_late_passes: Of calls in the prefill.
        taken_over_s: 0; a prefill is not shared.
        passes: Forward passes so far, the prefill included.
        readings_s: Clock readings, seconds; the cache adds one when the first decode step begins.
    """

    def __init__(self, parts: DecoderParts, decisions: Decisions, buffers: StepBuffers, run_layer: RunLayer) -> None:
        super().__init__(config=decoder_config(parts.model.config))
        self._parts = parts
        self._index = {layer: i for i, layer in enumerate(parts.layers)}
        self._decisions = decisions
        self._buffers = buffers
        self._run_compiled = run_layer
        self._prompt_rows: PromptRows | None = None
        self._prompt_length = 0
        self._seen = 0
        self.layers_now: tuple[int, ...] = ()
        self.executed: list[Tensor] = []
        self.prompt_executed: Tensor | None = None
        self.cached_numbers = [0] * parts.num_layers
        self.prompt_keys = self.prompt_tokens = torch.zeros(parts.num_layers, dtype=torch.long)
        self.late_tokens = torch.zeros(parts.num_layers, dtype=torch.long)
        self.late_passes = self.prompt_late_tokens = self.prompt_late_passes = self.late_tokens
        self.passes = 0
        self.readings_s: list[float] = []
        self.taken_over_s = 0.0

    @property
    def peak_bytes(self) -> int:
        """Bytes of the blocks of all layers that some step of this decode may run."""
        needed = [pair for layer, pair in self._buffers.blocks.items() if self._decisions.needed_after(layer, -1)]
        return sum(block.nbytes for pair in needed for block in pair)

    # What transformers calls on a cache ----------------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens so far."""
        return self._seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return the sizes of the prefill's mask; a decode step comes with its own mask."""
        return self._seen + query_length, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of the prompt, [sources, heads, prompt, head dim], where a step will need them."""
        self.cached_numbers[layer_idx] = token_numbers(key_states, value_states)
        if self._decisions.needed_after(layer_idx, -1):
            copies = 1 if self._prompt_rows is None else self._prompt_rows.copies
            self._buffers.write_prompt(layer_idx, key_states, value_states, copies)
        return key_states, value_states

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Move the rows to those from which beam search continues, LongTensor [rows]."""
        self._buffers.reorder(beam_idx, self._prompt_length, self._seen)

    # Running layers ------------------------------------------------------------------------------------------

    def begin_step(self, inputs: dict[str, Any]) -> tuple[int, ...]:
        """Feed the buffers with a decode step.

        Args:
            inputs: With which transformers calls the model: ``input_ids`` and ``position_ids`` [rows, 1],
                ``attention_mask`` [rows, length] if there is padding.

        Returns:
            The layers of the step, in order.
        """
        if not self.executed:
            self._buffers.open_prompt(self._prompt_length, inputs.get("attention_mask"))
            self.readings_s.append(now_s(inputs["input_ids"].device))
        self._buffers.feed(inputs["input_ids"], inputs["position_ids"], self._seen)
        self._decisions.begin_step(len(self.executed), len(inputs["input_ids"]))
        return tuple(layer for layer, runs in enumerate(self._decisions.executed[0].tolist()) if runs)

    def end_step(self) -> None:
        """Count the decode step."""
        self.executed.append(self._decisions.executed)
        self._seen += 1
        self.passes += 1

    def run_layer(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Run a layer over the prompt, or in a decode step if it is one of the step's layers."""
        index = self._index[call.layer]
        if self._seen == 0:
            return self._run_prompt(index, call, hidden, args, kwargs)
        if index not in self.layers_now:
            return hidden
        arguments = bound_arguments(call, hidden, args, kwargs)
        name = next(name for name, value in arguments.items() if value is self)
        del arguments[name]
        keys, values = self._buffers.blocks[index]
        return self._run_compiled(call.forward, call.layer, hidden, keys, values, self._buffers.column, name, arguments)

    def _run_prompt(self, index: int, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        length = hidden.shape[1]
        if self._prompt_rows is None:
            copies = self._decisions.rows_per_source(len(hidden))
            self._prompt_rows = PromptRows(len(hidden), copies, hidden.device)
        prompt = self._prompt_rows
        if index == 0:
            hidden = prompt.first(hidden)
        args, kwargs = prompt.arguments(args, kwargs)
        self.prompt_tokens[index] = len(hidden) * length
        hidden = call(hidden, *args, **kwargs)
        if index < self._parts.num_layers - 1:
            return hidden
        prompt.forget()
        self._prompt_length = self._seen = length
        self.passes += 1
        return prompt.all(hidden)
