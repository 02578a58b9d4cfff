"""Decode with verified drafts: transformers prepares a call, :mod:`hsdlab.decoding.verified_loop` runs it."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from hsdlab.decoding.cache import SkipCache
from hsdlab.decoding.compiled import Compilation
from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.encoder_decoder import CrossAttention, EncoderDecoderPair, encoder_timed
from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.guard import every_pass_recorded
from hsdlab.decoding.output import DecodeOutput
from hsdlab.decoding.packed import packed_weights
from hsdlab.decoding.timing import Timing, now_s
from hsdlab.decoding.trace import LayerCounts, SourceCounts, Trace
from hsdlab.decoding.verified_loop import DraftedStrategy, VerifiedLoop
from hsdlab.errors import UserError


def verified_decode(
    parts: DecoderParts,
    strategy: DraftedStrategy,
    input_ids: Tensor,
    config: GenerationConfig,
    generation_config: GenerationConfig | None,
    kwargs: dict[str, Any],
    max_steps: int,
    compilation: Compilation | None,
) -> tuple[Any, DecodeOutput]:
    """Decode one batch.

    Args:
        parts: The model's layers and head.
        strategy: Drafts, and says how many tokens.
        input_ids: The prompts, LongTensor [sources, prompt].
        config: The merged options of the call.
        generation_config: Its options object, for transformers.
        kwargs: Its other keywords, for transformers.
        max_steps: T.
        compilation: None.

    Returns:
        transformers' output, and ours.

    Raises:
        UserError: The call asks for what drafts cannot give: beams, compiled steps, hidden states or attention weights.
    """
    _check(strategy, config, kwargs, compilation)
    model = parts.model
    cross = None if parts.encoder is None else CrossAttention(parts.num_layers)
    cache = SkipCache(parts, Decisions(strategy, parts.num_layers, max_steps), cross=cross)
    given = cache if cross is None else EncoderDecoderPair(parts, cache, cross)
    encoder_s: list[float] = []
    loop = VerifiedLoop(parts, strategy, cache, max_steps)
    cache.readings_s.append(now_s(model.device))
    with (
        every_pass_recorded(parts, cache),
        packed_weights(parts, max_steps),
        encoder_timed(parts, encoder_s),
        torch.no_grad(),
    ):
        raw = type(model).generate(
            model, input_ids, generation_config, past_key_values=given, custom_generate=loop, **kwargs
        )
    cache.readings_s.append(now_s(model.device))
    readings = cache.readings_s
    output = DecodeOutput(
        sequences=raw.sequences,
        sequences_scores=None,
        scores=raw.scores,
        trace=_trace(loop, cache, None if cross is None else cross.counts(input_ids)),
        timing=Timing(
            prompt_s=readings[1] - readings[0],
            decode_s=readings[-1] - readings[1],
            decode_passes=int(loop.new_tokens.max()) - 1,
            encoder_s=sum(encoder_s),
        ),
        cache_bytes=cache.peak_bytes,
    )
    return raw, output


def _check(
    strategy: DraftedStrategy, config: GenerationConfig, kwargs: dict[str, Any], compilation: Compilation | None
) -> None:
    if config.num_beams > 1:
        raise UserError(
            f"{strategy!r}: num_beams={config.num_beams}. Beam search compares all beams after every token, so that "
            "several drafted tokens cannot be verified at once; decode greedily or sample (num_beams=1)."
        )
    if config.get_generation_mode() not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise UserError(
            f"{strategy!r}: {config.get_generation_mode().value} cannot be verified; decode greedily or sample."
        )
    for name in ("streamer", "watermarking_config"):
        if kwargs.get(name) is not None or getattr(config, name, None) is not None:
            raise UserError(
                f"{strategy!r}: {name} needs one token after the other, which drafts are not; leave it out."
            )
    if compilation is not None:
        raise UserError(f"{strategy!r}: verified drafts cannot be compiled yet; leave compile out.")
    if config.output_hidden_states or config.output_attentions or config.output_logits:
        raise UserError(
            f"{strategy!r}: hidden states, attention weights and raw logits are not collected over drafts and their "
            "verification; leave output_hidden_states, output_attentions and output_logits out."
        )


def _trace(loop: VerifiedLoop, cache: SkipCache, source: SourceCounts | None) -> Trace:
    """Return the trace of the text: every token has run all layers. What was computed for it is in the counts."""
    counts, num_layers = loop.counts, cache.late_tokens.shape[0]
    steps = int(loop.new_tokens.max()) - 1
    live = torch.arange(steps)[:, None] < loop.new_tokens - 1  # (steps, rows)
    whole = bool((counts.tokens[:, 0] == counts.tokens[:, 1]).all())
    return Trace(
        executed=live[:, :, None].repeat(1, 1, num_layers),
        live=live,
        prompt_length=loop.prompt_length,
        layers=LayerCounts(
            tokens=counts.tokens[:, 0] if whole else counts.tokens,
            attended=counts.attended,
            passes=counts.passes[:, 0] if whole else counts.passes,
            late_tokens=cache.late_tokens,
            late_passes=cache.late_passes,
            cached_numbers=torch.tensor(cache.cached_numbers),
            prompt_tokens=cache.prompt_tokens,
            prompt_keys=cache.prompt_keys,
            prompt_late_tokens=cache.prompt_late_tokens,
            prompt_late_passes=cache.prompt_late_passes,
        ),
        compute_steps=int(live.sum()),
        decode_passes=steps,
        probes=loop.probed,
        batch_rows=len(loop.new_tokens),
        drafts=counts,
        source=source,
    )
