"""AdamW, and a learning rate that rises and falls over the whole run."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from hsdlab.errors import UserError

Decay = Literal["linear", "cosine"]


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    steps: float,
    warmup: float,
    decay: Decay,
) -> dict[str, Any]:
    """Make what `configure_optimizers` returns: AdamW and its schedule, one step of which goes with one of the run.

    Args:
        parameters: Those that are trained.
        learning_rate: At its peak.
        weight_decay: For matrices; norms and biases have none.
        steps: Of the whole run.
        warmup: Share of the steps in which the learning rate rises.
        decay: How it falls to 0 after them.

    Raises:
        UserError: A run without an end.
    """
    if math.isinf(steps):
        raise UserError("The learning rate falls over the whole run: give its length (trainer.max_epochs).")
    trained = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.dim() > 1]},
        {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=learning_rate, weight_decay=weight_decay)
    scheduler = LambdaLR(optimizer, lambda step: learning_rate_factor(step, int(steps), warmup, decay))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def learning_rate_factor(step: int, steps: int, warmup: float, decay: Decay) -> float:
    """The learning rate of a step as a share of its peak.

    It rises in equal steps over the first `warmup` of all, then falls to 0 after the last.

    Example:
        >>> [round(learning_rate_factor(step, 10, 0.2, "linear"), 3) for step in (0, 1, 2, 6, 10)]
        [0.333, 0.667, 1.0, 0.5, 0.0]
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    progress = min(1.0, (step - rising) / max(1, steps - rising))
    return 1 - progress if decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
