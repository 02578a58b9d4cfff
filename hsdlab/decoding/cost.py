"""What a decode costs: floating-point operations and the weights that were read.

Depth is not speed: a softmax probe applies the head, late keys and values are projected, attention grows with the
text. All of it is counted here. Times are measured elsewhere (:class:`Timing`, ``evaluate.py bench``).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from hsdlab.decoding.families import decoder_parts, key_value_size, matrix_weights
from hsdlab.decoding.generate import DecodeOutput
from hsdlab.decoding.trace import Trace


def decode_cost(model: nn.Module, output: DecodeOutput) -> dict[str, Any]:
    """What one decode cost, as plain numbers: what `hsdlab.metrics.Efficiency.update` takes.

    Args:
        model: The model that decoded.
        output: What it gave.
    """
    trace = output.trace
    return {
        "depth_sum": int(trace.executed.sum()),
        "live_steps": int(trace.live.sum()),
        "compute_depth_sum": trace.compute_depth_sum,
        "compute_steps": trace.compute_steps,
        "num_layers": trace.num_layers,
        "decode_seconds": output.timing.decode_s,
        "decode_passes": output.timing.decode_passes,
        "prompt_seconds": output.timing.prompt_s,
        "prompts": 1,
        "flops": decode_flops(model, trace),
        "cache_bytes": output.cache_bytes,
    }


def decode_flops(model: nn.Module, trace: Trace) -> float:
    """Floating-point operations of the decode steps of a trace, prompt pass apart.

    Two per weight of each matrix that a token is multiplied with (layers, head, the head's rows that probes used, exit
    classifiers, key and value projections of late fills) and four per attended token and attention channel (scores,
    weighted sum). Norms, biases, activations, embeddings and the cosines of hidden-state saturation are left out.

    Args:
        model: The model that decoded.
        trace: Its trace; everything computed is counted, beams that were not returned too. That of an oracle counts
            what the oracle claims to have run.

    Returns:
        The number of operations; depth along unreturned beams is taken at its average over the whole search.
    """
    parts = decoder_parts(model)
    config = parts.model.config.get_text_config(decoder=True)
    per_layer = 2 * sum(matrix_weights(layer) for layer in parts.layers) / parts.num_layers
    per_head = 2 * sum(matrix_weights(module) for module in (*parts.after_layers, parts.head))
    per_fill = 2 * config.hidden_size * key_value_size(parts.model)
    attention_size = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )

    context = trace.prompt_length + 1 + torch.arange(len(trace.live), dtype=torch.double)  # tokens attended to
    depths = trace.depths.double()  # (steps, rows)
    computed = trace.compute_depth_sum / max(float(depths.sum()), 1.0)  # beams computed per beam returned
    attention = 4 * attention_size * float((depths * context[:, None]).sum()) * computed
    layers = per_layer * trace.compute_depth_sum
    heads = per_head * trace.compute_steps + 2 * trace.probe_weights
    return layers + attention + heads + per_fill * trace.filled


def ideal_speedup(model: nn.Module, schedule: Sequence[Iterable[int]], taken: Sequence[int] | None = None) -> float:
    """The most a schedule can gain for small batches, where reading the weights takes the time.

    (weights read at full depth, head included) / (weights read under the schedule), over all decode steps: batch 1,
    greedy, one dtype, prompt pass apart.

    Args:
        model: The model.
        schedule: The executed layers of each decode step.
        taken: How many texts take each step, at least one of them; by default all count once.

    Returns:
        A factor, 1 or more.
    """
    parts = decoder_parts(model)
    layer_bytes = [_bytes(layer) for layer in parts.layers]
    outside = _bytes(parts.head) + sum(_bytes(module) for module in parts.after_layers)
    taken = [1] * len(schedule) if taken is None else taken
    read = sum(
        texts * (sum(layer_bytes[i] for i in layers) + outside) for texts, layers in zip(taken, schedule, strict=True)
    )
    return (sum(layer_bytes) + outside) * sum(taken) / read


def _bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())
