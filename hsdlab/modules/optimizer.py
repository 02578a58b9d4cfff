"""AdamW, with a learning rate schedule over the whole run."""

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
"""The schedules of `transformers.get_scheduler` that take a warm-up, a length, and no other number."""


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    steps: float,
    warmup: float,
    schedule: LearningRateSchedule,
) -> dict[str, Any]:
    """Make AdamW and its learning rate schedule.

    Args:
        parameters: The trained parameters.
        learning_rate: The peak.
        weight_decay: For matrices. Parameters of one dimension (norms, biases) have none.
        steps: Optimizer steps of the whole run; Lightning gives infinity for a run without an end.
        warmup: Share of the steps, 0 to 1, in which the learning rate rises from 0.
        schedule: The learning rate after warm-up, by the names of `transformers.get_scheduler`.

    Returns:
        The dictionary that Lightning's `configure_optimizers` expects. The schedule advances once each optimizer step.

    Raises:
        UserError: The number of steps is infinite.
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
