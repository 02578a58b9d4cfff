"""Verified decoding: a strategy drafts tokens with few layers, the whole model checks them, and no token changes.

The decoding semantics extended, point 2 (docs/decoding.md). Each round drafts some tokens of each row, takes what the
drafts left in the KV cache back, and runs one pass at full depth over them. The longest prefix that full depth would
have written itself is accepted, and its own next token follows. Greedy drafts are accepted while they are the argmax.
Sampled drafts are accepted by the rule of speculative sampling (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1),
so that the distribution is that of full depth.

transformers prepares processors, warpers and criteria, and calls the loop here in the place of its own.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from hsdlab.decoding.cache import SkipCache
from hsdlab.decoding.decisions import Decisions, Strategy
from hsdlab.decoding.device import sent
from hsdlab.decoding.draft_counts import DraftCounts
from hsdlab.decoding.draft_head import DraftHead
from hsdlab.decoding.draft_length import DraftLength
from hsdlab.decoding.drafts import DraftDecisions, Resumed
from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.finite import NotFiniteLogitsError
from hsdlab.decoding.next_scores import NextScores
from hsdlab.decoding.passes import Passes
from hsdlab.decoding.sub_layers import SubLayers
from hsdlab.decoding.text_ends import TextEnds


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


@dataclass
class _Draft:
    """The drafts of one round.

    Attributes:
        tokens: LongTensor [rows, most drafts].
        counts: Drafted tokens of each row, LongTensor [rows] on the CPU.
        probabilities: From which each was sampled, [rows, most drafts, vocabulary]; None for greedy drafts.
        resumed: What the drafts computed at full depth; None where it cannot be kept.
    """

    tokens: Tensor
    counts: Tensor
    probabilities: Tensor | None
    resumed: Resumed | None


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
        rows, self._prompt_length = input_ids.shape
        self._sampling = bool(generation_config.do_sample)
        self._scores = NextScores(logits_processor, rows)
        mask = model_kwargs.get("attention_mask")
        self._passes = Passes(self._parts, self._cache, torch.ones_like(input_ids) if mask is None else mask)
        allowed = self._strategy.draft_tokens(input_ids)
        self._head = None if allowed is None else DraftHead(self._parts, allowed)
        ends = TextEnds(stopping_criteria, self._prompt_length, self._max_steps)
        self._most = ends.max_new_tokens
        self.counts = DraftCounts(self._parts.num_layers, self._prompt_length, rows)
        self._text = input_ids.new_zeros(rows, self._prompt_length + self._max_steps)
        self._text[:, : self._prompt_length] = input_ids
        self._rows = torch.arange(rows)  # of the batch, that are still decoded
        self._written = torch.zeros(rows, dtype=torch.long)  # new tokens of each of them
        self._kept_scores: list[list[Tensor]] | None = (
            [[] for _ in range(rows)] if generation_config.output_scores else None
        )
        self.new_tokens = torch.zeros(rows, dtype=torch.long)

        logits = self._passes.prefill(input_ids)
        self._add(logits[:, None], torch.zeros(rows, dtype=torch.long), None, ends)
        while len(self._rows) > 0:
            draft = self._drafted()
            logits = self._verified(draft)
            self._add(logits, draft.counts, draft, ends)

        pad = generation_config._pad_token_tensor
        longest = int(self.new_tokens.max())
        sequences = self._text[:, : self._prompt_length + longest]
        after = torch.arange(longest) >= self.new_tokens[:, None]
        sequences[:, self._prompt_length :][sent(after, sequences.device)] = 0 if pad is None else pad
        return GenerateDecoderOnlyOutput(
            sequences=sequences, scores=self._stacked_scores(), past_key_values=self._cache
        )

    # Drafting ------------------------------------------------------------------------------------------------

    def _drafted(self) -> _Draft:
        """Draft tokens of each row."""
        left = self._most - self._written - 1  # the last new token is the verification's
        counts = torch.minimum(self._length.of_rows(self._rows), left)
        start = self._cache.lengths
        tokens: list[Tensor] = []
        probabilities: list[Tensor] = []
        last = self._last_tokens()
        drafting = counts > 0
        noted = self._noted_layer(counts)
        while bool(drafting.any()):
            step = DraftDecisions(self._decisions, self._written - 1 + len(tokens), drafting)
            logits = self._passes.draft(last, step, noted, self._head)
            self.counts.drafted(step.executed, start.expand(len(drafting)) + len(tokens), drafting, self._head)
            scores = self._scores.of(
                self._with(tokens), self._prompt_length + self._written + len(tokens), self._rows, logits
            )
            last = self._chosen(scores, probabilities)
            tokens.append(last)
            more = counts > len(tokens)
            if self._length.stops_below > 0 and bool(more.any()):
                more &= self._length.goes_on(probabilities[-1] if self._sampling else scores.softmax(dim=-1), last)
            counts = torch.where(drafting & ~more, torch.minimum(counts, torch.tensor(len(tokens))), counts)
            drafting = more
        resumed = None
        if noted is not None and tokens:
            mask = torch.arange(len(tokens) + 1) < counts[:, None]
            resumed = Resumed(noted, self._cache.take_noted(), mask)
        self._passes.forget(start.expand(len(counts)))
        empty = self._text.new_zeros(len(counts), 0)
        return _Draft(
            torch.stack(tokens, dim=1) if tokens else empty,
            counts,
            torch.stack(probabilities, dim=1) if probabilities else None,
            resumed,
        )

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
            for written, count in zip(self._written.tolist(), counts.tolist(), strict=True)
            for t in range(written - 1, written - 1 + count)
        ]
        layer = min(self._prefix[t] for t in steps)
        return layer if layer > 0 else None

    def _last_tokens(self) -> Tensor:
        rows = sent(self._rows, self._text.device)
        return self._text[rows, sent(self._prompt_length + self._written - 1, self._text.device)]

    def _with(self, drafts: list[Tensor]) -> Tensor:
        """Return the texts of the rows with the drafts so far after them, [rows, prompt + T]."""
        text = self._text[sent(self._rows, self._text.device)]
        first = sent(self._prompt_length + self._written, text.device)[:, None]
        if drafts:
            places = (first + torch.arange(len(drafts), device=text.device)).clamp(max=text.shape[1] - 1)
            text.scatter_(1, places, torch.stack(drafts, dim=1))
        return text

    # Verifying -----------------------------------------------------------------------------------------------

    def _verified(self, draft: _Draft) -> Tensor:
        """Run the last token of each row and its drafts at full depth; return logits [rows, drafts + 1, vocabulary]."""
        tokens = torch.cat([self._last_tokens()[:, None], draft.tokens], dim=1)
        valid = torch.arange(tokens.shape[1]) <= draft.counts[:, None]
        executed = torch.ones(*tokens.shape, self._parts.num_layers, dtype=torch.bool)
        if draft.resumed is not None:
            executed[:, :, : draft.resumed.layer] = ~draft.resumed.mask[:, :, None]
        start = self._cache.lengths.expand(len(valid))
        logits = self._passes.run(tokens, executed, valid, draft.resumed)
        self.counts.verified(executed & valid[:, :, None], start, valid)
        return logits

    def _add(self, logits: Tensor, drafted: Tensor, draft: _Draft | None, ends: TextEnds) -> None:
        """Accept drafts and append full depth's own next token; rows whose text ends leave the batch.

        Args:
            logits: After the last token and after each draft, [rows, drafts + 1, vocabulary].
            drafted: Drafts of each row, LongTensor [rows] on the CPU.
            draft: The drafts; None after the prefill.
            ends: Says where a text ends.
        """
        text = self._with([] if draft is None else list(draft.tokens.unbind(dim=1)))
        first = self._prompt_length + self._written
        scores = self._scores.of_places(text, first, self._rows, logits)
        self._check_finite(logits, drafted)
        if self._sampling:
            accepted, following = _sampled(scores.softmax(dim=-1), draft, drafted)
        else:
            accepted, following = _greedy(scores, draft, drafted)
        text.scatter_(1, sent(first + accepted, text.device)[:, None], following[:, None])
        on_device = sent(self._rows, text.device)
        self._text[on_device] = text
        ended, added = ends.of(text, self._written, accepted + 1)
        if self._kept_scores is not None:
            for place, (row, count) in enumerate(zip(self._rows.tolist(), added.tolist(), strict=True)):
                self._kept_scores[row] += list(scores[place, :count])
        if draft is not None:
            self._length.saw(self._rows, drafted, accepted)
            self.counts.accepted(self._rows, drafted, torch.minimum(accepted, added))
        self._written = self._written + added
        self.new_tokens[self._rows] = self._written
        if draft is not None:
            self._passes.forget(self._written - 1)
        stay = (~ended).nonzero().squeeze(1)
        if len(stay) < len(ended):
            self._rows, self._written = self._rows[stay], self._written[stay]
            if len(stay) > 0:
                self._passes.keep(stay)

    def _check_finite(self, logits: Tensor, drafted: Tensor) -> None:
        bad = ~torch.isfinite(logits.amax(dim=-1)).cpu()  # (rows, drafts + 1)
        bad &= torch.arange(bad.shape[1]) <= drafted[:, None]
        if bad.any():
            rows = bad.any(dim=1).nonzero().squeeze(1)
            step = int((self._written[rows] + bad[rows].long().argmax(dim=1)).min())
            raise NotFiniteLogitsError(self._strategy, step, tuple(self._rows[rows].tolist()))

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


def _greedy(scores: Tensor, draft: _Draft | None, drafted: Tensor) -> tuple[Tensor, Tensor]:
    """Count the accepted drafts, LongTensor [rows] on the CPU, and give the token after them, LongTensor [rows]."""
    own = scores.argmax(dim=-1)  # (rows, drafts + 1)
    if draft is None:
        return drafted, own[:, 0]
    equal = (own[:, :-1] == draft.tokens).cpu() & (torch.arange(draft.tokens.shape[1]) < drafted[:, None])
    accepted = equal.long().cumprod(dim=1).sum(dim=1)
    return accepted, own.gather(1, sent(accepted, own.device)[:, None]).squeeze(1)


def _sampled(probabilities: Tensor, draft: _Draft | None, drafted: Tensor) -> tuple[Tensor, Tensor]:
    """Accept drafts by speculative sampling; as :func:`_greedy`."""
    if draft is None or draft.probabilities is None:
        return drafted, torch.multinomial(probabilities[:, 0], 1).squeeze(1)
    tokens = draft.tokens[:, :, None]
    wanted = probabilities[:, :-1].gather(2, tokens).squeeze(2)  # (rows, drafts)
    drawn_from = draft.probabilities.gather(2, tokens).squeeze(2)
    lucky = torch.rand_like(wanted) * drawn_from < wanted
    lucky = lucky.cpu() & (torch.arange(wanted.shape[1]) < drafted[:, None])
    accepted = lucky.long().cumprod(dim=1).sum(dim=1)
    place = sent(accepted, probabilities.device)
    rows = torch.arange(len(place), device=place.device)
    own = probabilities[rows, place]  # (rows, vocabulary)
    rejected = sent(accepted < drafted, place.device)[:, None]
    left_out = draft.probabilities[rows, place.clamp(max=wanted.shape[1] - 1)]
    rest = (own - left_out).clamp(min=0)
    rest = torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, own)  # equal up to rounding
    return accepted, torch.multinomial(torch.where(rejected, rest, own), 1).squeeze(1)


def _layers_before_the_first_skipped(draft: Strategy, num_layers: int, max_steps: int) -> list[int] | None:
    """Count the layers that a schedule runs in each step before it skips one, at most L-1; None for no schedule."""
    schedule = draft.scheduled_layers(num_layers, max_steps)
    if schedule is None or hasattr(draft, "should_exit") or any(isinstance(layers, SubLayers) for layers in schedule):
        return None
    runs = [set(layers) for layers in schedule if not isinstance(layers, SubLayers)]
    return [next((layer for layer in range(num_layers) if layer not in layers), num_layers - 1) for layers in runs]
