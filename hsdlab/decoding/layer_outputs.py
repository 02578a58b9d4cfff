"""The output of every layer of a forward pass, for code that needs all depths of a model at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hsdlab.decoding.families import decoder_parts


@contextmanager
def layer_outputs(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Collect the outputs of the decoder layers of a forward pass inside the block.

    Args:
        model: A transformers language model, or a peft model around one.

    Yields:
        The output of each layer that has run, [rows, length, d], by its index. That of the last layer is the state
        before the final norm (in transformers' own ``hidden_states`` it is the state after it). Gradients flow through
        them.

    Raises:
        UnsupportedModelError: The decoder layers of the model are not found.
    """
    layers = decoder_parts(model).layers
    index = {layer: i for i, layer in enumerate(layers)}
    outputs: dict[int, Tensor] = {}

    def collect(layer: nn.Module, args: Any, output: Any) -> None:
        outputs[index[layer]] = output[0] if isinstance(output, tuple) else output

    handles = [layer.register_forward_hook(collect) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
