"""AdamW, and a learning rate that rises and falls over the whole run."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW
from transformers import get_scheduler

from hsdlab.errors import UserError

LearningRateSchedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "constant_with_warmup"
]
"""The schedules of `transformers.get_scheduler` that need a warm-up and a length, and no number besides."""


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    steps: float,
    warmup: float,
    schedule: LearningRateSchedule,
) -> dict[str, Any]:
    """Make what `configure_optimizers` returns: AdamW and its schedule, one step of which goes with one of the run.

    Args:
        parameters: Those that are trained.
        learning_rate: At its peak.
        weight_decay: For matrices; norms and biases have none.
        steps: Of the whole run.
        warmup: Share of the steps in which the learning rate rises from 0.
        schedule: How the learning rate goes on after the warm-up.

    Raises:
        UserError: A run without an end.
    """
    if math.isinf(steps):
        raise UserError("The learning rate is scheduled over the whole run: give its length (trainer.max_epochs).")
    trained = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.dim() > 1]},
        {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=learning_rate, weight_decay=weight_decay)
    scheduler = get_scheduler(schedule, optimizer, round(warmup * steps), int(steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
