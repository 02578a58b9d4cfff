"""DecodeOutput: the result of one decode."""

from dataclasses import dataclass

from torch import Tensor

from hsdlab.decoding.step_graphs import Warmup
from hsdlab.decoding.timing import Timing
from hsdlab.decoding.trace import Trace


@dataclass(frozen=True)
class DecodeOutput:
    """The result of one decode.

    Attributes:
        sequences: The returned sequences, LongTensor [rows, prompt + new], padded as transformers pads.
        sequences_scores: [rows], as transformers computes them; None without beams.
        scores: For each new token [rows of the batch, vocabulary], as transformers computes them; None unless the
            call has ``output_scores=True``. Those of a sequence that has ended mean nothing.
        trace: Which layers ran, along the returned sequences.
        timing: Seconds of the prefill and of the decode steps.
        cache_bytes: The most bytes that the KV cache held at the end of a forward pass, entries that were allocated and
            not yet written included.
        warmup: What compiling and capturing decode steps cost; None without ``compile``.
    """

    sequences: Tensor
    sequences_scores: Tensor | None
    scores: tuple[Tensor, ...] | None
    trace: Trace
    timing: Timing
    cache_bytes: int
    warmup: Warmup | None = None
