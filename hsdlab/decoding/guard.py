"""The guard of every decode: a forward pass that the engine's KV cache did not record is an error.

Some models drop or replace the cache that they are given (Phi-3 with longrope where the text grows beyond the original
context, prefix tuning), and some options run forward passes of their own (classifier-free guidance). Layers are then
not skipped, and the trace would have steps without executed layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from hsdlab.decoding.cache import SkipCache
from hsdlab.decoding.families import DecoderParts
from hsdlab.errors import RunError


@contextmanager
def every_pass_recorded(parts: DecoderParts, cache: SkipCache) -> Iterator[None]:
    """Raise inside the block as soon as the cache did not record a forward pass of the decoder.

    Args:
        parts: The decoder whose forward passes are counted.
        cache: A new KV cache, which counts the passes that went through all layers.

    Yields:
        Nothing; decode inside the block.

    Raises:
        RunError: A forward pass did not run on the cache.
    """
    passes = 0

    def check(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal passes
        passes += 1
        if cache.passes != passes:
            raise unrecorded_pass(parts, passes, cache.passes)

    handle = parts.body.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()
    if cache.passes != passes:
        raise unrecorded_pass(parts, passes, cache.passes)


def unrecorded_pass(parts: DecoderParts, passes: int, recorded: int) -> RunError:
    """Make the error of a forward pass that did not run on the engine's KV cache.

    Args:
        parts: The decoder.
        passes: Its forward passes in this decode.
        recorded: Those that ran on the cache.

    Returns:
        The error, to be raised.
    """
    return RunError(
        f"Forward pass {passes} of {type(parts.model).__name__} did not run on hsdlab's KV cache ({recorded} "
        "passes did), so that no layer of it was skipped or counted. The model, an adapter or an option of generate "
        "(guidance_scale, past_key_values) replaces the cache or runs passes of its own: decode without it, "
        "or with transformers' own generate."
    )
