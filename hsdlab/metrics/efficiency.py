"""What a decode cost: layers, time, FLOPs and cache memory, side by side.

"Layers saved" is not a speed-up, so the depth never stands alone. A decode step is a forward pass whose input
is a new token; the prompt pass, which runs all layers over the prompt, is counted apart.
"""

from typing import Any

import torch
from torch import Tensor

from hsdlab.errors import UserError
from hsdlab.metrics.base import SumMetric, zero

SUMS = (
    "depth_sum",
    "live_steps",
    "compute_depth_sum",
    "compute_steps",
    "decode_seconds",
    "decode_passes",
    "prompt_seconds",
    "prompts",
    "flops",
)
MAXIMA = ("num_layers", "cache_bytes")


class Efficiency(SumMetric):
    """Depth, time, FLOPs and cache memory of all decode steps so far.

    It measures nothing itself: the numbers come from who decoded, with times taken after the device was
    synchronised. Means are over all steps (micro-averages), never means of batch means.

    Under several processes everything is summed before dividing, seconds too. So ``decode_step_ms``,
    ``prompt_ms`` and ``tokens_per_second`` are those of one process, averaged over the processes; together
    the processes yield about ``tokens_per_second`` times their number. ``cache_peak_mib`` is the largest of
    all calls on any process.

    Args:
        **kwargs: See torchmetrics' `Metric`.

    Example:
        >>> metric = Efficiency()
        >>> metric.update(
        ...     depth_sum=60, live_steps=4, compute_depth_sum=140, compute_steps=8, num_layers=30,
        ...     decode_seconds=0.2, decode_passes=4, prompt_seconds=0.1, prompts=1,
        ...     flops=1.2e9, cache_bytes=3 * 2**20,
        ... )
        >>> for key, value in metric.compute().items():
        ...     print(key, value.item())
        average_layers 15.0
        share_skipped 0.5
        compute_layers 17.5
        decode_step_ms 50.0
        tokens_per_second 20.0
        prompt_ms 100.0
        flops_per_token 300000000.0
        cache_peak_mib 3.0
    """

    depth_sum: Tensor
    live_steps: Tensor
    compute_depth_sum: Tensor
    compute_steps: Tensor
    decode_seconds: Tensor
    decode_passes: Tensor
    prompt_seconds: Tensor
    prompts: Tensor
    flops: Tensor
    num_layers: Tensor
    cache_bytes: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in SUMS:
            self.add_state(name, zero(), dist_reduce_fx="sum")
        for name in MAXIMA:
            self.add_state(name, zero(), dist_reduce_fx="max")

    def update(
        self,
        *,
        depth_sum: int,
        live_steps: int,
        compute_depth_sum: int,
        compute_steps: int,
        num_layers: int,
        decode_seconds: float,
        decode_passes: int,
        prompt_seconds: float,
        prompts: int,
        flops: float,
        cache_bytes: int,
    ) -> None:
        """Add what one or more calls of ``generate`` cost.

        Args:
            depth_sum: Executed layers, summed over all live decode steps of the returned sequences.
            live_steps: The number of those steps.
            compute_depth_sum: Executed layers, summed over all live decode steps of all beams.
            compute_steps: The number of those steps.
            num_layers: Layers of the model; the same in every update.
            decode_seconds: Time of all decode steps, in seconds.
            decode_passes: Forward passes of the decode; one step of a whole batch is one pass.
            prompt_seconds: Time of all prompt passes, in seconds.
            prompts: Prompt passes; one call of ``generate`` is one.
            flops: FLOPs of all decode steps, all rows and beams.
            cache_bytes: The most that the key/value cache held in this call, in bytes.

        Raises:
            UserError: If ``num_layers`` is not positive or not that of the earlier updates.
        """
        seen = int(self.num_layers)
        if num_layers < 1 or seen not in (0, num_layers):
            raise UserError(
                f"`num_layers` must be {seen or 'positive'}{' as before' if seen else ''}, got {num_layers}. "
                "Use one Efficiency per model, or call reset() between models."
            )
        self._add(
            depth_sum=depth_sum,
            live_steps=live_steps,
            compute_depth_sum=compute_depth_sum,
            compute_steps=compute_steps,
            decode_seconds=decode_seconds,
            decode_passes=decode_passes,
            prompt_seconds=prompt_seconds,
            prompts=prompts,
            flops=flops,
        )
        self.num_layers = torch.full_like(self.num_layers, num_layers)
        self.cache_bytes = self.cache_bytes.clamp(min=cache_bytes)

    def compute(self) -> dict[str, Tensor]:
        """Return the costs, 0-dim float64 tensors.

        Returns:
            - ``average_layers``: mean executed layers per decode step of the returned sequences.
            - ``share_skipped``: 1 - average_layers / num_layers.
            - ``compute_layers``: mean executed layers per decode step of all beams.
            - ``decode_step_ms``: milliseconds per decode pass, whole batch.
            - ``tokens_per_second``: decode steps of the returned sequences per second of decoding, per
              process. The first new token comes from the prompt pass and is not counted.
            - ``prompt_ms``: milliseconds per prompt pass.
            - ``flops_per_token``: decode FLOPs, all beams, per decode step of the returned sequences.
            - ``cache_peak_mib``: the largest key/value cache of a call, in MiB.

            NaN where there was nothing to measure: no decode step, no prompt pass, no update.
        """
        average_layers = self.depth_sum / self.live_steps
        return {
            "average_layers": average_layers,
            "share_skipped": 1 - average_layers / self.num_layers,
            "compute_layers": self.compute_depth_sum / self.compute_steps,
            "decode_step_ms": 1000 * self.decode_seconds / self.decode_passes,
            "tokens_per_second": self.live_steps / self.decode_seconds,
            "prompt_ms": 1000 * self.prompt_seconds / self.prompts,
            "flops_per_token": self.flops / self.live_steps,
            "cache_peak_mib": torch.where(self.num_layers > 0, self.cache_bytes / 2**20, torch.nan),
        }
