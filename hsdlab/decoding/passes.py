"""Drives a model through forward passes of several tokens of each row, outside of transformers' ``generate``.

Each token has its own set of executed layers and its own position, rows differ in length, and the last tokens of a row
can be taken back: what the verification of drafts needs.
"""

from collections.abc import Callable
from inspect import signature

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from hsdlab.decoding.cache import SkipCache
from hsdlab.decoding.device import sent
from hsdlab.decoding.drafts import DraftDecisions, Resumed
from hsdlab.decoding.encoder_decoder import EncodedSource, EncoderDecoderPair, positions_given
from hsdlab.decoding.families import DecoderParts, decoder_config, position_ids
from hsdlab.decoding.skipping import skippable


class Passes:
    """Forward passes over one batch, the prefill first.

    Args:
        parts: The model's layers.
        cache: A new KV cache, with a row for each prompt.
        prompt_mask: [rows, prompt], 1 for tokens and 0 for padding on the left.
        source: What the decoder attends to beside its text; None for a decoder-only model.
    """

    def __init__(
        self, parts: DecoderParts, cache: SkipCache, prompt_mask: Tensor, source: EncodedSource | None = None
    ) -> None:
        self._parts = parts
        self._cache = cache
        self._source = source
        self._prompt_mask = prompt_mask.bool()
        self._prompt_tokens = prompt_mask.sum(dim=1)
        self._bool_masks = decoder_config(self._parts.model.config)._attn_implementation == "sdpa"
        cache.prompt_mask = prompt_mask

    @property
    def lengths(self) -> Tensor:
        """New tokens of each row so far, LongTensor [rows] on the CPU."""
        return self._cache.lengths.expand(len(self._prompt_mask))

    def prefill(self, input_ids: Tensor) -> Tensor:
        """Run the prompts.

        Args:
            input_ids: LongTensor [rows, prompt].

        Returns:
            Logits after the last token of each prompt, [rows, vocabulary].
        """
        mask = self._prompt_mask.long()
        return self._run(input_ids, mask, position_ids(mask), keep=1)[:, -1]

    def draft(
        self, tokens: Tensor, draft: DraftDecisions, noted_layer: int | None, head: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Run one token of each row, each row at its own step.

        Args:
            tokens: LongTensor [rows].
            draft: Names the layers of each row.
            noted_layer: See :meth:`SkipCache.next_draft`.
            head: Takes the place of the model's head; None for the model's own.

        Returns:
            Logits [rows, vocabulary], or what ``head`` returns for hidden states [rows, d] after the final norm. Those
            of rows that draft nothing mean nothing.
        """
        starts = sent(self.lengths, tokens.device)[:, None]  # (rows, 1)
        self._cache.next_draft(draft, noted_layer)
        mask = self._mask(starts, columns=int(self.lengths.max()) + 1)
        positions = self._prompt_tokens[:, None] + starts
        return self._run(tokens[:, None], mask, positions, keep=1, head=head)[:, -1]

    def run(
        self, tokens: Tensor, executed: Tensor, valid: Tensor | None = None, resumed: Resumed | None = None
    ) -> Tensor:
        """Run the next tokens of each row.

        Args:
            tokens: LongTensor [rows, tokens].
            executed: The layers that run for each, BoolTensor [rows or 1, tokens, layers] on the CPU; with a last
                dimension of 2 for attention and MLP apart.
            valid: BoolTensor [rows, tokens] on the CPU, false at the padding after a row's tokens; None for no padding.
            resumed: See :meth:`SkipCache.next_pass`.

        Returns:
            Logits [rows, tokens, vocabulary]; those at padding mean nothing.
        """
        rows, count = tokens.shape
        valid = torch.ones(rows, count, dtype=torch.bool) if valid is None else valid
        slots = torch.minimum(torch.arange(count), valid.sum(dim=1, keepdim=True) - 1)  # padding repeats the last place
        places = sent(self.lengths[:, None] + slots, tokens.device)  # (rows, tokens)
        self._cache.next_pass(executed, valid, resumed)
        mask = self._mask(places, columns=int(self.lengths.max()) + count)
        return self._run(tokens, mask, self._prompt_tokens[:, None] + places, keep=count)

    def forget(self, kept: Tensor) -> None:
        """Take the last tokens of each row back, as if they had never been.

        Args:
            kept: The new tokens of each row that stay, LongTensor [rows] on the CPU.
        """
        self._cache.forget(kept)

    def keep(self, rows: Tensor) -> None:
        """Keep some rows of the batch, after :meth:`forget`; the others leave it.

        Args:
            rows: LongTensor [n] on the CPU, ascending.
        """
        self._cache.keep(rows)
        on_device = sent(rows, self._prompt_mask.device)
        self._prompt_mask, self._prompt_tokens = self._prompt_mask[on_device], self._prompt_tokens[on_device]
        if self._source is not None:
            self._source = self._source.of_rows(on_device)

    def _run(
        self,
        input_ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        keep: int,
        head: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Run the model; return the last ``keep`` logits of each row, or what ``head`` returns in their place."""
        if self._source is not None:
            return self._run_decoder(self._source, input_ids, mask, positions, keep, head)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        with skippable(self._parts):
            if head is None:
                return self._parts.model(**inputs, logits_to_keep=keep).logits
            return head(self._parts.body(**inputs).last_hidden_state[:, -keep:])

    def _run_decoder(
        self,
        source: EncodedSource,
        input_ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        keep: int,
        head: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """Run the decoder of an encoder-decoder model, likewise."""
        parts = self._parts
        both = {"past_key_values": EncoderDecoderPair(parts, self._cache, self._cache.cross), "use_cache": True}
        with skippable(parts), positions_given(parts, positions):
            if head is None:
                names = {"decoder_input_ids": input_ids, "decoder_attention_mask": mask}
                if "decoder_position_ids" in signature(parts.model.forward).parameters:
                    names["decoder_position_ids"] = positions
                logits = parts.model(
                    encoder_outputs=BaseModelOutput(last_hidden_state=source.states),
                    attention_mask=source.mask,
                    **names,
                    **both,
                ).logits
                return logits[:, -keep:]
            names = {"input_ids": input_ids, "attention_mask": mask}
            if "position_ids" in signature(parts.body.forward).parameters:
                names["position_ids"] = positions
            hidden = parts.body(
                encoder_hidden_states=source.states, encoder_attention_mask=source.mask, **names, **both
            ).last_hidden_state[:, -keep:]
            return head(hidden if parts.head_scale is None else hidden * parts.head_scale)

    def _mask(self, tokens: Tensor, columns: int) -> Tensor:
        """Let each of the tokens [rows, tokens] attend to the prompt, to the new tokens before it and to itself.

        Returns [rows, 1, tokens, prompt + columns], as the model's attention takes it.
        """
        rows, count = tokens.shape
        new = torch.arange(columns, device=tokens.device) <= tokens[:, :, None]  # (rows, tokens, columns)
        prompt = self._prompt_mask[:, None].expand(rows, count, -1)
        allowed = torch.cat([prompt, new], dim=2)[:, None]
        if self._bool_masks:
            return allowed
        dtype = self._parts.model.dtype
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
