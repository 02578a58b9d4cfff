"""Wall-clock time of a decode: the prefill and the decode steps."""

import time
from dataclasses import dataclass

import torch


def now_s(device: torch.device) -> float:
    """Read a monotonic clock after the device has finished all queued work.

    Args:
        device: Where the model is; anything but the CPU is synchronised first.

    Returns:
        Seconds; only differences between two readings mean something.
    """
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Timing:
    """How long one ``generate`` call took.

    Attributes:
        prompt_s: Seconds until the first decode step began: set-up, prefill, choice of the first new token. Where the
            layers ran in another decode (:func:`~hsdlab.decoding.shared_prefill.shared_prefill`), their seconds there
            count here too.
        decode_s: Seconds of all decode steps, choice of tokens included; 0 where there was none.
        decode_passes: Number of decode steps; one forward pass of the whole batch counts as one. Of verified drafts,
            those that full depth would have taken for the same text.
        encoder_s: The part of ``prompt_s`` in which the encoder of an encoder-decoder model ran.
        taken_over_s: The part of ``prompt_s`` that another decode measured; 0 where this one ran the layers itself.
    """

    prompt_s: float
    decode_s: float
    decode_passes: int
    taken_over_s: float = 0.0
    encoder_s: float = 0.0
