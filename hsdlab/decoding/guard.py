"""The guard of every decode: a forward pass that the engine's cache did not record is an error.

Some models drop or replace the cache that they are given (Phi-3 with longrope where the text passes the original
context, prefix tuning), and some options run passes of their own (classifier-free guidance). Layers are then not
skipped, and the trace would tell of steps that ran none.
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
    """Raise as soon as a forward pass of the decoder is not one more pass of the cache.

    Raises:
        RunError: The model did not run on the engine's cache.
    """
    passes = 0

    def check(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal passes
        passes += 1
        if cache.passes != passes:
            raise _unrecorded(parts, passes, cache.passes)

    handle = parts.body.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()
    if cache.passes != passes:
        raise _unrecorded(parts, passes, cache.passes)


def _unrecorded(parts: DecoderParts, passes: int, recorded: int) -> RunError:
    return RunError(
        f"Forward pass {passes} of {type(parts.model).__name__} did not run on hsdlab's key/value cache ({recorded} "
        "passes did), so that no layer of it was skipped or counted. The model, an adapter or an option of generate "
        "(guidance_scale, past_key_values) replaces the cache or runs passes of its own: decode without it, "
        "or with transformers' own generate."
    )
