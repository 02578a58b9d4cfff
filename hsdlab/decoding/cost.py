"""What a decode cost: floating-point operations and bytes read, layer by layer.

Depth is not speed. An intermediate prediction applies the head, a late KV computation runs projections, and attention
grows with the text. All of it is counted here, each layer with its own weights. Times are measured elsewhere
(:class:`Timing`, ``evaluate.py bench``).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from hsdlab.costs import Cost
from hsdlab.decoding.decisions import Strategy
from hsdlab.decoding.families import DecoderParts, attention, cross_attention, decoder_parts, matrix_weights
from hsdlab.decoding.generate import DecodeOutput
from hsdlab.decoding.layer_sizes import encoder_sizes, layer_sizes, read_bytes, weight_bytes
from hsdlab.decoding.sub_layers import SubLayers, apart, step_mask
from hsdlab.decoding.trace import Trace
from hsdlab.stored import stored_bytes


def decode_cost(model: nn.Module, output: DecodeOutput) -> Cost:
    """Add up what one decode cost.

    Args:
        model: The model that decoded, which gives the sizes of its matrices.
        output: The trace, the timing and the size of the KV cache.

    Returns:
        The cost over all returned sequences. Its fields say which figures also count beams that were not returned.
    """
    trace, timing = output.trace, output.timing
    rows = trace.live.shape[1]
    warmup_s = 0.0 if output.warmup is None else output.warmup.seconds
    return Cost(
        num_layers=trace.num_layers,
        prompt_passes=1,
        shared_prompt_passes=int(timing.taken_over_s > 0),
        decode_passes=timing.decode_passes,
        new_tokens=rows + int(trace.live.sum()),  # step t makes new token t + 1; the prefill makes the first
        decode_steps=int(trace.live.sum()),
        executed_layers=trace.depth_sum,
        computed_steps=trace.compute_steps,
        computed_layers=trace.compute_depth_sum,
        late_key_values=trace.filled,
        intermediate_predictions=trace.probes.rows,
        intermediate_weights=trace.probes.weights,
        flops=decode_flops(model, trace),
        bytes_read=decode_bytes(model, trace),
        prompt_flops=prompt_flops(model, trace),
        encoder_flops=encoder_flops(model, trace),
        encoder_s=timing.encoder_s,
        prompt_s=timing.prompt_s,
        decode_s=timing.decode_s,
        warmup_s=warmup_s,
        wall_s=timing.prompt_s + timing.decode_s + warmup_s,
        peak_cache_bytes=output.cache_bytes,
        **({} if trace.drafts is None else trace.drafts.sums()),
    )


def decode_flops(model: nn.Module, trace: Trace) -> float:
    """Count the floating-point operations of a trace.

    Two per weight of each matrix that a token is multiplied with: a projection between the embedding and the layers
    (OPT-350m), its layers, the head, the rows of the head that intermediate predictions used, exit classifiers,
    projections of late KV computations. Of a layer with experts, those count to which a token is sent. A late KV
    computation runs the key and value projections, and the query projection where it cannot be left out: where it is
    one matrix with them (GPT-2, GPT-NeoX) or in several steps (DeepSeek-V3), and in families that hsdlab does not know
    by name. Four per attended token and attention channel: scores, weighted sum. Latent attention (DeepSeek-V3) also
    expands what is cached of each token to keys and values whenever it is read. Norms, biases, activations, embeddings,
    the cosines of hidden-state saturation and the update of a recurrent state itself are not counted.

    Args:
        model: The model that decoded, which gives the sizes of its matrices.
        trace: Beams that were not returned count too. Without beams, the layers of a sequence do not count after its
            end, its late KV computations and intermediate predictions do. For an oracle, the layers count that it
            claims to have run.

    Returns:
        Operations of all decode steps; the prefill is not counted.
    """
    parts = decoder_parts(model)
    counts = trace.layers
    sizes, drafts = _Sizes(parts), trace.drafts
    layers = 2 * (apart(counts.tokens, dims=1) * sizes.parts).sum()
    attended = 2 * (sizes.channels * counts.attended).sum()
    expanded = 2 * (sizes.expansion * (counts.attended if drafts is None else drafts.keys_read)).sum()
    late = 2 * (counts.late_tokens * sizes.late).sum()
    *around, head = (matrix_weights(module) for module in _outside(parts))
    outside = 2 * sum(around) * (drafts.computed if drafts else trace.compute_steps)
    outside += 2 * (head * (drafts.head_tokens if drafts else trace.compute_steps))
    outside += 2 * (drafts.draft_head_weights if drafts else 0)
    crossed = _crossed(sizes, trace, counts.tokens, of_prompt=False)
    return float(layers + attended + expanded + late + outside + crossed + 2 * trace.probes.weights)


def prompt_flops(model: nn.Module, trace: Trace) -> float:
    """Count the floating-point operations of a prefill, as :func:`decode_flops` counts those of decode steps.

    Under a prompt schedule a layer is computed for the tokens that run it, and its keys and values for some of the
    others. Attention counts each of these tokens with all keys of the padded prompt. A kernel that leaves out the keys
    after a token computes about half of that. The head is computed for the last token of each row.

    Args:
        model: The model that decoded.
        trace: Padding of the prompt counts.

    Returns:
        Operations of the prefill.
    """
    parts = decoder_parts(model)
    counts, sizes = trace.layers, _Sizes(parts)
    layers = 2 * (counts.prompt_tokens * sizes.parts.sum(dim=1)).sum()
    attention = 2 * trace.prompt_length * (sizes.channels * counts.prompt_tokens).sum()
    expanded = 2 * (sizes.expansion * counts.prompt_keys).sum()
    late = 2 * (counts.prompt_late_tokens * sizes.late).sum()
    *around, head = (matrix_weights(module) for module in _outside(parts))
    outside = 2 * trace.batch_rows * (trace.prompt_length * sum(around) + head)
    return float(layers + attention + expanded + late + outside + _crossed(sizes, trace, counts.prompt_tokens, True))


def encoder_flops(model: nn.Module, trace: Trace) -> float:
    """Count the floating-point operations of the encoder, as :func:`prompt_flops` counts those of a prefill.

    Args:
        model: The model that decoded.
        trace: Padding of the sources counts.

    Returns:
        Operations over all sources, each once; 0 for a decoder-only model.
    """
    encoder = decoder_parts(model).encoder
    if encoder is None or trace.source is None:
        return 0.0
    weights, channels = encoder_sizes(encoder)
    return 2.0 * trace.source.rows * trace.source.length * (weights + channels * trace.source.length)


def _crossed(sizes: "_Sizes", trace: Trace, tokens: Tensor, of_prompt: bool) -> Tensor | int:
    """Operations of cross-attention but for its queries and outputs: its keys and values, and attention itself."""
    source = trace.source
    if source is None:
        return 0
    made = source.made - source.made_later if of_prompt else source.made_later
    ran = apart(tokens, dims=1)[:, 0]
    return 2 * ((sizes.source * made).sum() + source.length * (sizes.source_channels * ran).sum())


def decode_bytes(model: nn.Module, trace: Trace) -> float:
    """Count the bytes of weights, keys and values that the decode steps of a trace read.

    A decode step reads once the weights of each layer that runs for some sequence, and once the head and what else is
    outside of the layers. Where attention and MLP run apart, each call of a part reads its weights; norms count with
    the MLP. Of a layer with experts, it reads at most those of every token, which is exact for one token a pass. A late
    KV computation and an intermediate prediction read their matrices once more. Each token that runs a layer reads from
    the KV cache what it attends to; a verification reads it once for all tokens of a row. Activations, embeddings and
    recurrent states are not counted, nor are the keys and values to which latent attention expands its cache, nor the
    copy of some rows of the head that a decode makes once (:class:`~hsdlab.decoding.token_head.TokenHead`).

    Args:
        model: The model that decoded; its dtype is that of the KV cache.
        trace: Beams that were not returned count too.

    Returns:
        Bytes of all decode steps; the prefill is not counted.
    """
    parts = decoder_parts(model)
    counts, size = trace.layers, parts.model.dtype.itemsize
    tokens, passes = apart(counts.tokens, dims=1), apart(counts.passes, dims=1)
    layers = (passes * _part_bytes(parts, tokens[:, 1] / passes[:, 1].clamp(min=1))).sum()
    drafts = trace.drafts
    keys_read = counts.attended if drafts is None else drafts.keys_read
    cache = (counts.cached_numbers * keys_read).sum() * size
    late_bytes = torch.tensor([weight_bytes(layer, size) for layer in parts.layers], dtype=torch.float64)
    late = (counts.late_passes * _Sizes(parts).late * late_bytes).sum()
    *around, head = (stored_bytes(module) for module in _outside(parts))
    outside = sum(around) * (drafts.forward_passes if drafts else trace.decode_passes)
    outside += head * (drafts.head_passes if drafts else trace.decode_passes)
    outside += (drafts.draft_head_weights_read if drafts else 0) * size
    if trace.source is not None:
        sizes = _Sizes(parts)
        layers = layers + ((trace.source.made_later > 0) * sizes.source_bytes).sum()
        readers = tokens[:, 0] if drafts is None else drafts.rows_run
        cache = cache + size * trace.source.length * (sizes.source_numbers * readers).sum()
    return float(layers + cache + late + outside + trace.probes.weights_read * size)


def ideal_speedup(
    model: nn.Module, schedule: Sequence[Iterable[int] | SubLayers], taken: Sequence[int] | None = None
) -> float:
    """Compute the largest speed-up of a schedule at batch size 1, where reading the weights takes the time.

    It is (bytes of weights read at full depth, head included) / (bytes of weights read under the schedule), over all
    decode steps, greedy, without the prefill.

    Args:
        model: Gives the bytes of each layer and of the head, in its own dtypes.
        schedule: The executed layers of each decode step, or their parts.
        taken: How many texts take each decode step, of the same length as ``schedule``; not all 0. None counts each
            step once.

    Returns:
        The speed-up (×), 1 or more.
    """
    parts = decoder_parts(model)
    part_bytes, outside = _part_bytes(parts, torch.ones(parts.num_layers)), _outside_bytes(parts)
    taken = [1] * len(schedule) if taken is None else taken
    read = sum(
        texts * (float((part_bytes * apart(step_mask(layers, parts.num_layers), dims=1)).sum()) + outside)
        for texts, layers in zip(taken, schedule, strict=True)
    )
    return (float(part_bytes.sum()) + outside) * sum(taken) / read


def draft_cost(parts: DecoderParts, draft: Strategy, max_steps: int, head_tokens: int | None = None) -> float:
    """Compute what a draft step costs of a decode step at full depth, where reading the weights takes the time.

    Args:
        parts: Give the bytes of each layer and of the head.
        draft: The strategy that drafts. Where its layers are not known before decoding, half of them count.
        max_steps: T.
        head_tokens: The rows of the head that a draft reads; None for all.

    Returns:
        A share, from 0 to 1, over all steps of the schedule.
    """
    part_bytes, outside = _part_bytes(parts, torch.ones(parts.num_layers)), _outside_bytes(parts)
    schedule = draft.scheduled_layers(parts.num_layers, max_steps)
    layers = float(part_bytes.sum()) / 2
    if schedule and not hasattr(draft, "should_exit"):
        masks = [apart(step_mask(layers, parts.num_layers), dims=1) for layers in schedule]
        layers = sum(float((part_bytes * mask).sum()) for mask in masks) / len(masks)
    head = 1.0 if head_tokens is None else min(1.0, head_tokens / parts.vocabulary_size)
    return (layers + head * outside) / (float(part_bytes.sum()) + outside)


class _Sizes:
    """The sizes of all layers, LongTensor [layers] each; those of ``parts``, attention and the rest, [layers, 2]."""

    def __init__(self, parts: DecoderParts) -> None:
        sizes = layer_sizes(parts)
        self.parts = torch.tensor([[each.attention, each.rest] for each in sizes])
        self.late = torch.tensor([each.late for each in sizes])
        self.channels = torch.tensor([each.channels for each in sizes])
        self.expansion = torch.tensor([each.expansion for each in sizes])
        self.source = torch.tensor([each.source for each in sizes])
        self.source_bytes = torch.tensor([each.source_bytes for each in sizes])
        self.source_channels = torch.tensor([each.source_channels for each in sizes])
        self.source_numbers = torch.tensor([each.source_numbers for each in sizes])


def _part_bytes(parts: DecoderParts, tokens: Tensor) -> Tensor:
    """Bytes of weights that a call reads of attention and of the rest of each layer, at most, [layers, 2] in float64.

    ``tokens`` [layers] run the MLP in the call. The keys and values of cross-attention are there already.
    """
    pairs = []
    for layer, count, sizes in zip(parts.layers, tokens.tolist(), layer_sizes(parts), strict=True):
        crossed = cross_attention(layer) if parts.encoder is not None else None
        of_attention = read_bytes(attention(layer), layer, count)
        of_attention += 0 if crossed is None else stored_bytes(crossed)
        pairs.append([of_attention - sizes.source_bytes, read_bytes(layer, layer, count) - of_attention])
    return torch.tensor(pairs, dtype=torch.float64)


def _outside(parts: DecoderParts) -> list[nn.Module]:
    """Return what every pass runs outside of the layers: from the embedding to the layers, and from them to the logits.

    Embeddings are looked up, not multiplied.
    """
    known = {id(module) for module in (*parts.after_layers, parts.head)}
    before = [
        module
        for module in parts.body.children()
        if not isinstance(module, nn.ModuleList | nn.Embedding) and id(module) not in known
    ]
    return [*before, *parts.after_layers, parts.head]


def _outside_bytes(parts: DecoderParts) -> int:
    """Bytes of weights that a decode step reads outside of its layers."""
    return sum(stored_bytes(module) for module in _outside(parts))
