"""What every layer gives in a forward pass, for what looks at all depths of a model at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hsdlab.decoding.families import decoder_parts


@contextmanager
def layer_outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of the decoder layers of the forward passes inside the block.

    Args:
        model: A decoder-only transformers model, or a peft model around one.

    Yields:
        A list that grows by one tensor [rows, length, d] with each layer: the state behind it, before the final norm
        (transformers' own ``hidden_states`` has the last one after it). Gradients flow through them.

    Raises:
        UnsupportedModelError: If the model cannot be served.
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
