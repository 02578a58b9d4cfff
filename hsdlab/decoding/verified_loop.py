"""Verified decoding: a strategy drafts tokens with few layers, the whole model checks them, and no token changes.

The decoding semantics extended, point 2 (docs/decoding.md). Each round drafts some tokens of each row, takes what the
drafts left in the KV cache back, and runs one pass at full depth over them. The longest prefix that full depth would
have written itself is accepted (:mod:`hsdlab.decoding.acceptance`), and its own next token follows.

transformers prepares processors, warpers and criteria, and calls the loop here in the place of its own.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from hsdlab.decoding.acceptance import Draft, greedy, sampled
from hsdlab.decoding.cache import SkipCache
from hsdlab.decoding.decisions import Decisions, Strategy
from hsdlab.decoding.device import sent
from hsdlab.decoding.draft_counts import DraftCounts
from hsdlab.decoding.draft_length import DraftLength
from hsdlab.decoding.drafts import DraftDecisions, Resumed
from hsdlab.decoding.encoder_decoder import EncodedSource
from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.finite import NotFiniteLogitsError
from hsdlab.decoding.growing_texts import GrowingTexts
from hsdlab.decoding.next_scores import NextScores
from hsdlab.decoding.passes import Passes
from hsdlab.decoding.sub_layers import SubLayers
from hsdlab.decoding.text_ends import TextEnds
from hsdlab.decoding.token_head import TokenHead


@runtime_checkable
class DraftedStrategy(Strategy, Protocol):
    """A strategy whose drafts are verified, which runs all layers itself; ``hsdlab.Verified`` is one."""

    draft: Strategy
    """Drafts the tokens."""

    def draft_length(self, parts: DecoderParts, max_steps: int) -> DraftLength:
        """Make what decides how many tokens each row drafts.

        Args:
            parts: The sizes of the model's layers and head.
            max_steps: T.

        Returns:
            A new one for each decode.
        """

    def draft_tokens(self, input_ids: Tensor) -> Tensor | None:
        """Choose the tokens that a draft may write.

        Args:
            input_ids: The prompts, LongTensor [rows, prompt].

        Returns:
            LongTensor [n], without repetition; None for all.
        """


class VerifiedLoop:
    """The decode loop, called as transformers calls ``custom_generate``.

    Args:
        parts: The model's layers and head.
        strategy: Says what drafts, how many tokens, and with which rows of the head.
        cache: A new KV cache under decisions that run all layers, with a row for each sequence.
        max_steps: T.

    Attributes:
        counts: What was computed, after the call.
        new_tokens: New tokens of each sequence, LongTensor [rows] on the CPU, after the call.
        prompt_length: Length of the (padded) prompt of the decoder, tokens, after the call.
    """

    def __init__(self, parts: DecoderParts, strategy: DraftedStrategy, cache: SkipCache, max_steps: int) -> None:
        self._parts = parts
        self._strategy = strategy
        self._cache = cache
        self._max_steps = max_steps
        self._decisions = Decisions(strategy.draft, parts.num_layers, max_steps)
        self._length = strategy.draft_length(parts, max_steps)
        self._prefix = _layers_before_the_first_skipped(strategy.draft, parts.num_layers, max_steps)
        self.probed = self._decisions.probed
        self.counts: DraftCounts
        self.new_tokens: Tensor

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> GenerateDecoderOnlyOutput:
        """Decode; the arguments are those of transformers' own loops."""
        input_ids = input_ids.long()
        rows, prompt_length = input_ids.shape
        self.prompt_length = prompt_length
        self._sampling = bool(generation_config.do_sample)
        self._scores = NextScores(logits_processor, rows)
        mask, source = model_kwargs.get("attention_mask"), None
        if self._parts.encoder is not None:
            source = EncodedSource(model_kwargs["encoder_outputs"].last_hidden_state, mask)
            mask = None
        self._passes = Passes(self._parts, self._cache, torch.ones_like(input_ids) if mask is None else mask, source)
        allowed = self._strategy.draft_tokens(input_ids)
        self._head = None if allowed is None else TokenHead(self._parts, allowed)
        self._ends = TextEnds(stopping_criteria, prompt_length, self._max_steps)
        self.counts = DraftCounts(self._parts.windows, prompt_length, rows)
        self._texts = GrowingTexts(input_ids, self._max_steps)
        self.new_tokens = self._texts.new_tokens
        self._kept_scores: list[list[Tensor]] | None = (
            [[] for _ in range(rows)] if generation_config.output_scores else None
        )

        logits = self._passes.prefill(input_ids)
        nothing = Draft(input_ids.new_zeros(rows, 0), torch.zeros(rows, dtype=torch.long), None, None)
        self._leave(self._add(logits[:, None], nothing)[1])
        while len(self._texts.rows) > 0:
            draft = self._drafted()
            accepted, ended, added = self._add(self._verified(draft), draft)
            self._note(draft, accepted, added)
            self._leave(ended)

        pad = generation_config._pad_token_tensor
        return GenerateDecoderOnlyOutput(
            sequences=self._texts.sequences(0 if pad is None else pad),
            scores=self._stacked_scores(),
            past_key_values=self._cache,
        )

    # Drafting ------------------------------------------------------------------------------------------------

    def _drafted(self) -> Draft:
        """Draft tokens of each row."""
        texts = self._texts
        left = self._ends.max_new_tokens - texts.written - 1  # the last new token is the verification's
        counts = torch.minimum(self._length.of_rows(texts.rows), left)
        start = self._cache.lengths
        last = texts.last()
        tokens = last.new_zeros(len(last), 0)  # (rows, drafts so far)
        probabilities: list[Tensor] = []
        drafting = counts > 0
        noted = self._noted_layer(counts)
        while bool(drafting.any()):
            done = tokens.shape[1]
            step = DraftDecisions(self._decisions, texts.written - 1 + done, drafting)
            logits = self._passes.draft(last, step, noted, self._head)
            self.counts.drafted(step.executed, start.expand(len(drafting)) + done, drafting, self._head)
            scores = self._scores.of(texts.followed_by(tokens), texts.lengths + done, texts.rows, logits)
            last = self._chosen(scores, probabilities)
            tokens = torch.cat([tokens, last[:, None]], dim=1)
            more = counts > done + 1
            if self._length.stops_below > 0 and bool(more.any()):
                more &= self._length.goes_on(probabilities[-1] if self._sampling else scores.softmax(dim=-1), last)
            counts = torch.where(drafting & ~more, counts.clamp(max=done + 1), counts)
            drafting = more
        drafted, resumed = tokens.shape[1], None
        if noted is not None and drafted > 0:
            resumed = Resumed(noted, self._cache.take_noted(), torch.arange(drafted + 1) < counts[:, None])
        self._passes.forget(start.expand(len(counts)))
        return Draft(tokens, counts, torch.stack(probabilities, dim=1) if probabilities else None, resumed)

    def _chosen(self, scores: Tensor, probabilities: list[Tensor]) -> Tensor:
        """Choose the next token of each row, LongTensor [rows]; when sampling, note what it was sampled from."""
        if not self._sampling:
            return scores.argmax(dim=-1)
        # where nothing can be drafted (draft_vocabulary, a prefix constraint), any token: it will hardly be accepted
        drawable = torch.isfinite(scores.amax(dim=-1, keepdim=True))
        probabilities.append(torch.where(drawable, scores, 0.0).softmax(dim=-1))
        return torch.multinomial(probabilities[-1], 1).squeeze(1)

    def _noted_layer(self, counts: Tensor) -> int | None:
        """Find the first layer that some draft of the round skips: what arrives there is that of full depth."""
        if self._prefix is None or not bool((counts > 0).any()):
            return None
        steps = [
            t
            for written, count in zip(self._texts.written.tolist(), counts.tolist(), strict=True)
            for t in range(written - 1, written - 1 + count)
        ]
        layer = min(self._prefix[t] for t in steps)
        return layer if layer > 0 else None

    # Verifying -----------------------------------------------------------------------------------------------

    def _verified(self, draft: Draft) -> Tensor:
        """Run the last token of each row and its drafts at full depth; return logits [rows, drafts + 1, vocabulary]."""
        tokens = torch.cat([self._texts.last()[:, None], draft.tokens], dim=1)
        valid = torch.arange(tokens.shape[1]) <= draft.counts[:, None]
        executed = torch.ones(*tokens.shape, self._parts.num_layers, dtype=torch.bool)
        if draft.resumed is not None:
            executed[:, :, : draft.resumed.layer] = ~draft.resumed.mask[:, :, None]
        start = self._cache.lengths.expand(len(valid))
        logits = self._passes.run(tokens, executed, valid, draft.resumed)
        self.counts.verified(executed & valid[:, :, None], start, valid)
        return logits

    def _add(self, logits: Tensor, draft: Draft) -> tuple[Tensor, Tensor, Tensor]:
        """Accept drafts and append full depth's own next token.

        Args:
            logits: After the last token and after each draft, [rows, drafts + 1, vocabulary].
            draft: The drafts.

        Returns:
            Of each row how many drafts are accepted, whether its text has ended, and how many new tokens are part of
            it, [rows] on the CPU.
        """
        texts = self._texts
        text = texts.followed_by(draft.tokens)
        scores = self._scores.of_places(text, texts.lengths, texts.rows, logits)
        self._check_finite(logits, draft.counts)
        accepted, following = sampled(scores.softmax(dim=-1), draft) if self._sampling else greedy(scores, draft)
        text.scatter_(1, sent(texts.lengths + accepted, text.device)[:, None], following[:, None])
        ended, added = self._ends.of(text, texts.written, accepted + 1)
        if self._kept_scores is not None:
            for place, (row, count) in enumerate(zip(texts.rows.tolist(), added.tolist(), strict=True)):
                self._kept_scores[row] += list(scores[place, :count])
        texts.write(text, added)
        return accepted, ended, added

    def _note(self, draft: Draft, accepted: Tensor, added: Tensor) -> None:
        """Note what became of a draft, and take the keys and values of what was rejected back."""
        rows = self._texts.rows
        self._length.saw(rows, draft.counts, accepted)
        self.counts.accepted(rows, draft.counts, torch.minimum(accepted, added))
        self._passes.forget(self._texts.written - 1)

    def _leave(self, ended: Tensor) -> None:
        """Let the rows whose text has ended leave the batch."""
        stay = (~ended).nonzero().squeeze(1)
        if len(stay) < len(ended):
            self._texts.keep(stay)
            if len(stay) > 0:
                self._passes.keep(stay)

    def _check_finite(self, logits: Tensor, drafted: Tensor) -> None:
        bad = ~torch.isfinite(logits.amax(dim=-1)).cpu()  # (rows, drafts + 1)
        bad &= torch.arange(bad.shape[1]) <= drafted[:, None]
        if bad.any():
            rows = bad.any(dim=1).nonzero().squeeze(1)
            step = int((self._texts.written[rows] + bad[rows].long().argmax(dim=1)).min())
            raise NotFiniteLogitsError(self._strategy, step, tuple(self._texts.rows[rows].tolist()))

    def _stacked_scores(self) -> tuple[Tensor, ...] | None:
        """Return for each new token the scores of all rows; zeros where a row has ended."""
        if self._kept_scores is None:
            return None
        none = torch.zeros_like(self._kept_scores[0][0])
        longest = max(map(len, self._kept_scores))
        return tuple(
            torch.stack([row[step] if step < len(row) else none for row in self._kept_scores])
            for step in range(longest)
        )


def _layers_before_the_first_skipped(draft: Strategy, num_layers: int, max_steps: int) -> list[int] | None:
    """Count the layers that a schedule runs in each step before it skips one, at most L-1; None for no schedule."""
    schedule = draft.scheduled_layers(num_layers, max_steps)
    if schedule is None or hasattr(draft, "should_exit") or any(isinstance(layers, SubLayers) for layers in schedule):
        return None
    runs = [set(layers) for layers in schedule if not isinstance(layers, SubLayers)]
    return [next((layer for layer in range(num_layers) if layer not in layers), num_layers - 1) for layers in runs]
