"""How large a decoder layer is: what a token is multiplied with, and how wide attention is.

Sizes are read from the matrices of the layer, since a config names them differently in each family, and layers of one
model may differ. The attribute names are those of transformers' attention and experts.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hsdlab.decoding.families import (
    DecoderParts,
    attention,
    cross_attention,
    matrix_weights,
    output_projection,
    query_width,
)
from hsdlab.stored import quantised_linears, stored_bytes

_KEYS_AND_VALUES = ("k_proj", "v_proj", "k", "v")  # of cross-attention
_OUTPUTS = ("o", "o_proj", "out_proj", "c_proj", "dense", "output_proj", "wo", "proj")
_GATES = ("g_proj",)  # Laguna: the gate of what attention returns
_EXPANSIONS = ("kv_b_proj",)  # latent attention: what is cached of a token to its keys and values


@dataclass(frozen=True)
class LayerSizes:
    """Numbers of weights and of channels in one decoder layer.

    Attributes:
        attention: Weights that a token is multiplied with in attention, that to an encoder included.
        rest: The same in the rest of the layer. Of experts, those to which a token is sent.
        late: Weights that a late KV computation multiplies a token with, or that bring it into a recurrent state.
        channels: Width of all query heads together where queries meet keys, plus the width of what they return; 0
            without attention.
        expansion: Weights that what is cached of a token is multiplied with whenever it is attended to: 0, but in
            latent attention.
        source: Weights that a token of the encoder's output is multiplied with, once in a decode: those of the keys and
            values of cross-attention. They are not in ``attention``. 0 without an encoder, like the following.
        source_bytes: Bytes of these weights and their biases.
        source_channels: ``channels`` of cross-attention.
        source_numbers: Numbers that such a token has in the KV cache.
    """

    attention: int
    rest: int
    late: int
    channels: int
    expansion: int
    source: int = 0
    source_bytes: int = 0
    source_channels: int = 0
    source_numbers: int = 0


def layer_sizes(parts: DecoderParts) -> list[LayerSizes]:
    """Measure each layer.

    Args:
        parts: The layers, and their query projections.

    Returns:
        The sizes of the layers 0 … L-1.
    """
    return [_sizes(parts, index) for index in range(parts.num_layers)]


def encoder_sizes(encoder: nn.Module) -> tuple[int, int]:
    """Measure an encoder.

    Args:
        encoder: Its layers are a list among its children.

    Returns:
        Weights that a token is multiplied with, and ``channels`` of its attention, over all layers.
    """
    layers = next(each for each in encoder.children() if isinstance(each, nn.ModuleList))
    channels = sum(2 * _inputs(_named(attention(layer), _OUTPUTS)[0]) for layer in layers)
    return sum(map(matrix_weights, layers)), channels


def _sizes(parts: DecoderParts, index: int) -> LayerSizes:
    layer, query, mixer = parts.layers[index], parts.queries[index], parts.mixers[index]
    of_attention = attention(layer)
    expansion = sum(map(matrix_weights, _named(of_attention, _EXPANSIONS)))
    outputs = _named(of_attention, _OUTPUTS)
    after = sum(map(matrix_weights, (*outputs, *_named(of_attention, _GATES)))) + expansion
    active = token_weights(of_attention, layer)
    returned = _inputs(outputs[0]) if outputs else query_width(parts.model, index)
    value_size: Any = getattr(of_attention, "v_head_dim", None)
    key_size: Any = getattr(of_attention, "qk_head_dim", None) or getattr(of_attention, "head_dim", None)
    queries = returned if value_size is None or key_size is None else returned // value_size * key_size
    late = active - after - (0 if query is None else matrix_weights(query)) if parts.attends[index] else 0
    crossed = cross_attention(layer) if parts.encoder is not None else None
    pair = [] if crossed is None else _named(crossed, _KEYS_AND_VALUES)
    source = sum(map(matrix_weights, pair))
    return LayerSizes(
        attention=active - expansion + (0 if crossed is None else matrix_weights(crossed) - source),
        rest=token_weights(layer, layer) - active - (0 if crossed is None else matrix_weights(crossed)),
        late=late + _state_weights(mixer),
        channels=0 if parts.without_keys[index] else queries + returned,
        expansion=expansion,
        source=source,
        source_bytes=sum(map(stored_bytes, pair)),
        source_channels=0 if crossed is None else 2 * _inputs(_named(crossed, _OUTPUTS)[0]),
        source_numbers=sum(each.out_features for each in pair),  # type: ignore[misc]
    )


def _state_weights(mixer: nn.Module | None) -> int:
    """Weights that bring a token into the state of a recurrent layer: all but those of the output projection."""
    if mixer is None:
        return 0
    return matrix_weights(mixer) - matrix_weights(mixer.get_submodule(output_projection(mixer)))


def token_weights(module: nn.Module, layer: nn.Module) -> int:
    """Count the weights that a token is multiplied with.

    Args:
        module: A decoder layer, or a part of one.
        layer: The layer, whose router says to how many experts a token is sent.

    Returns:
        Weights of matrices; biases do not count.
    """
    stacked = _experts(module)
    idle = sum(weight.numel() for experts in stacked for weight in experts.parameters(recurse=False))
    sent = sum(weight.numel() * _share(weight, layer) for experts in stacked for weight in _matrices(experts))
    return matrix_weights(module) - idle + int(sent)


def read_bytes(module: nn.Module, layer: nn.Module, tokens: float) -> float:
    """Count the bytes of the weights that a call reads, at most.

    Args:
        module: A decoder layer, or a part of one.
        layer: The layer.
        tokens: How many tokens are sent to experts; each may be sent to others.

    Returns:
        Bytes, biases and norms included.
    """
    held = stored_bytes(module)
    idle = sum(
        weight.nbytes * (1 - _share(weight, layer, tokens))
        for experts in _experts(module)
        for weight in experts.parameters(recurse=False)
    )
    return held - idle


def weight_bytes(layer: nn.Module, size: int) -> float:
    """Look up how much memory one weight of a layer's attention takes.

    Args:
        layer: A decoder layer.
        size: Bytes of a weight that is not quantised.

    Returns:
        Bytes; of quantised weights, the mean, with their scales.
    """
    quantised = quantised_linears(attention(layer))
    weights = sum(map(matrix_weights, quantised))
    return sum(map(stored_bytes, quantised)) / weights if quantised else size


def _experts(module: nn.Module) -> list[nn.Module]:
    """The modules that hold the matrices of several experts in one parameter each, [experts, outputs, inputs]."""
    return [each for each in module.modules() if not isinstance(each, nn.Conv1d) and _matrices(each)]


def _matrices(experts: nn.Module) -> list[Tensor]:
    return [weight for weight in experts.parameters(recurse=False) if weight.dim() == 3]


def _share(weight: Tensor, layer: nn.Module, tokens: float = 1) -> float:
    """The share of the experts to which some tokens are sent, if each is sent to others; of all, without a router."""
    chosen: list[Any] = [getattr(router, "top_k", None) for router in layer.modules()]
    each = next((count for count in chosen if isinstance(count, int)), None)
    return 1.0 if each is None else min(1.0, each * tokens / len(weight))


def _named(module: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    """The matrices in a module whose attribute has one of the names."""
    return [each for name, each in module.named_modules() if name.rpartition(".")[2] in names]


def _inputs(matrix: Any) -> int:
    return getattr(matrix, "in_features", None) or matrix.nx  # GPT-2's Conv1D
