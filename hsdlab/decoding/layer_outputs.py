"""The output of every layer of a forward pass, for code that needs all depths of a model at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hsdlab.decoding.families import decoder_parts


@contextmanager
def layer_outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of the decoder layers of the forward passes inside the block.

    Args:
        model: A transformers language model, or a peft model around one.

    Yields:
        A list that grows by one tensor [rows, length, d] with each layer. The last one is the state before the final
        norm (in transformers' own ``hidden_states`` it is the state after it). Gradients flow through them.

    Raises:
        UnsupportedModelError: The decoder layers of the model are not found.
    """
    outputs: list[Tensor] = []

    def collect(layer: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(collect) for layer in decoder_parts(model).layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
