"""Wall-clock time of a decode, prompt pass apart."""

import time
from dataclasses import dataclass

import torch


def now_s(device: torch.device) -> float:
    """Seconds of a clock that only goes forward, read after the device has done all queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Timing:
    """How long one ``generate`` call took.

    Attributes:
        prompt_s: Seconds until the first decode step began: set-up, prompt pass, choice of the first new token.
        decode_s: Seconds of all decode steps, choice of tokens included; 0 where there was none.
        decode_passes: Number of decode steps, each one forward pass for all rows.
    """

    prompt_s: float
    decode_s: float
    decode_passes: int
