"""The decoding semantics as one masked teacher-forced pass.

With M[t, i] = "layer i runs for token t", a whole decode with skipped layers equals
``h = where(M[:, i], layer_i(h), h)`` over the full sequence. Every layer computes the keys and values of every token
from the hidden state with which the token arrived. Where attention and MLP run apart, their outputs are masked apart.
Replay is the reference of the tests, the fast way to score a text under a strategy, and the forward pass of skip-aware
training.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from transformers import DynamicCache

from hsdlab.decoding.calls import check_rotation, check_tokens
from hsdlab.decoding.decisions import described
from hsdlab.decoding.encoder_decoder import CrossAttention, EncoderDecoderPair
from hsdlab.decoding.families import DecoderParts, decoder_config, decoder_parts, position_ids
from hsdlab.decoding.layer_parts import Runs, check_parts, run_parts
from hsdlab.decoding.skipping import LayerCall, LayerRunner, skippable
from hsdlab.errors import UserError
from hsdlab.exits import last_layers


class _ReplayCache(LayerRunner, DynamicCache):
    """Takes the place of the KV cache; stores nothing and masks the output of each layer."""

    def __init__(self, parts: DecoderParts, executed: Tensor, past: DynamicCache | None) -> None:
        super().__init__(config=decoder_config(parts.model.config))
        self._past = past
        self._past_length = 0 if past is None else past.get_seq_length()
        self._index = {layer: i for i, layer in enumerate(parts.layers)}
        self._executed = executed.to(parts.model.device)  # (rows, length, layers) or (rows, length, layers, 2)
        flat = executed.flatten(0, 1)
        if parts.exits is not None:
            self.last_executed = last_layers(executed if executed.dim() == 3 else executed.any(dim=-1)).cpu()
        self._donors = set(parts.donors)
        self._any, self._all = flat.any(dim=0).tolist(), flat.all(dim=0).tolist()
        # a parameter without a gradient leaves DistributedDataParallel's other processes waiting, or out of step
        self._every_layer = torch.is_grad_enabled() and distributed.is_available() and distributed.is_initialized()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._past_length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return (query_length, 0) if self._past is None else self._past.get_mask_sizes(query_length, layer_idx)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self._past is None:
            return key_states, value_states
        past = self._past.layers[layer_idx]
        # (rows, heads, past + length, head dim)
        return torch.cat([past.keys, key_states], dim=-2), torch.cat([past.values, value_states], dim=-2)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """The whole text is one pass, so that a recurrent layer begins without a state and leaves none."""

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """See :meth:`get_conv_state`."""

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Tensor:
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        return recurrent_states

    def run_layer(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        index = self._index[call.layer]
        if self._executed.dim() == 4:
            attention, mlp = self._runs(index, 0), self._runs(index, 1)
            if attention is False and index in self._donors:
                attention = self._executed[:, -hidden.shape[1] :, index, 0]
            if attention is False and mlp is False:
                return hidden
            return run_parts(call, hidden, args, kwargs, attention, mlp)
        if not self._any[index] and not self._every_layer and index not in self._donors:
            return hidden
        output = call(hidden, *args, **kwargs)
        if self._all[index]:
            return output
        return torch.where(self._executed[:, -hidden.shape[1] :, index, None], output, hidden)

    def _runs(self, index: int, part: int) -> Runs:
        """Say for which tokens a part of a layer runs; 0 is attention, 1 is the MLP."""
        if self._all[index][part]:
            return True
        if not self._any[index][part] and not self._every_layer:
            return False
        return self._executed[:, :, index, part]


def replay(
    model: nn.Module,
    *,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    executed: Tensor,
    past: DynamicCache | None = None,
    logits_to_keep: int = 0,
    decoder_input_ids: Tensor | None = None,
    decoder_attention_mask: Tensor | None = None,
) -> Tensor:
    """Compute the logits that decoding with the layers in ``executed`` gives, in one pass over the whole text.

    Gradients flow as in any forward pass; use ``torch.no_grad()`` for scoring. A layer, attention or MLP that no token
    runs is not called, and its parameters get no gradient. With gradients and an initialised process group, it is
    called and its output dropped. Its parameters then get a gradient of zero, for which DistributedDataParallel waits
    in every process.

    Args:
        model: A transformers language model, decoder-only or encoder-decoder, or a peft model around one.
        input_ids: LongTensor [rows, length], left-padded. Of an encoder-decoder model, what the encoder reads.
        attention_mask: [rows, length], 1 for tokens and 0 for padding; None means no padding.
        executed: BoolTensor [rows, length, layers], true where the layer runs for the token
            (``trace.mask(prompt_length)``); or [rows, length, layers, 2] for attention and MLP apart. Of an
            encoder-decoder model, tokens and layers are those of the decoder.
        past: The KV cache of the text before ``input_ids``, computed by the model itself, so at full depth. Many
            replays over one prompt then need one prefill. It is not changed. ``attention_mask`` is then
            [rows, past + length]. None means that ``input_ids`` is the whole text, as it has to be for a model with
            recurrent layers.
        logits_to_keep: Compute the logits of so many last positions only, as in transformers; 0 means all.
        decoder_input_ids: What the decoder of an encoder-decoder model reads, its start token first, LongTensor
            [rows, length]; None for a decoder-only model.
        decoder_attention_mask: [rows, length], 1 for tokens and 0 for padding, which may be on the right; None means no
            padding.

    Returns:
        Logits [rows, length or logits_to_keep, vocabulary]; those at position p are for the token at p + 1.

    Raises:
        UserError: A shape does not fit, an id has no embedding, the decoder's ids are missing, the model would drop the
            mask (activation checkpointing in training), or rotates the keys of ``past`` otherwise in a text of this
            length (longrope).
        UnsupportedModelError: The model's attention and MLP cannot be skipped apart, or its parts are not found.
    """
    parts = decoder_parts(model)
    model = parts.model
    if (parts.encoder is None) != (decoder_input_ids is None):
        needs = "no encoder; leave it out" if parts.encoder is None else "an encoder; give it"
        raise UserError(f"decoder_input_ids: what a decoder beside an encoder reads. This model has {needs}.")
    text = input_ids if decoder_input_ids is None else decoder_input_ids
    for ids in (input_ids, text):
        if not isinstance(ids, Tensor) or ids.device.type == "cpu":  # on a GPU the check would wait for it
            check_tokens(ids, model)
    expected = (*text.shape, parts.num_layers)
    in_parts = isinstance(executed, Tensor) and executed.dim() == 4
    shape = (*expected, 2) if in_parts else expected
    if not isinstance(executed, Tensor) or executed.dtype != torch.bool or tuple(executed.shape) != shape:
        raise UserError(
            f"executed is {described(executed)}; expected a BoolTensor of shape {expected}: rows × length × layers, or "
            f"{(*expected, 2)} for attention and MLP apart."
        )
    if model.training and model.is_activation_checkpointing:
        raise UserError(
            "Activation checkpointing drops what replay passes to the layers while training; call "
            "model.activation_checkpointing_disable() first."
        )
    if in_parts:
        check_parts(parts)
    if past is not None and (parts.recurrent or parts.encoder is not None):
        kind = "recurrent layers" if parts.recurrent else "an encoder"
        raise UserError(f"past: {type(model).__name__} has {kind}; give the whole text.")
    if decoder_input_ids is not None:
        with skippable(parts):
            cache = EncoderDecoderPair(parts, _ReplayCache(parts, executed, None), CrossAttention(parts.num_layers))
            logits = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                past_key_values=cache,
                use_cache=True,
            ).logits
        return logits[:, -logits_to_keep:]
    rows, length = input_ids.shape
    past_length = 0 if past is None else past.get_seq_length()
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids[:, :1]).expand(rows, past_length + length)
    if tuple(attention_mask.shape) != (rows, past_length + length):
        raise UserError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; expected {(rows, past_length + length)}: rows × "
            "length, the length of past included."
        )
    if past is not None:
        check_rotation(model, attention_mask[:, :past_length], length)
    with skippable(parts):
        output = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids(attention_mask)[:, past_length:],
            use_cache=True,
            logits_to_keep=logits_to_keep,
            **{parts.cache_argument: _ReplayCache(parts, executed, past)},
        )
    return output.logits
