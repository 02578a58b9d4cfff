"""Refuse a skip strategy in a Trainer that never decodes, where it would have no effect."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.forced import layer_schedule
from hsdlab.errors import UserError


def refuse_idle_strategies(callbacks: Iterable[Any], model: nn.Module, max_new_tokens: int) -> None:
    """Refuse a strategy that skips layers in a Trainer whose module does not decode. Full depth is accepted.

    Args:
        callbacks: Of the Trainer. Strategies are those with a method ``scheduled_layers``.
        model: The model that the strategies would be applied to.
        max_new_tokens: T of the strategies' schedules.

    Raises:
        UserError: A strategy skips layers. The message names it and the options under which it would have an effect.
    """
    num_layers = decoder_parts(model).num_layers
    for strategy in callbacks:
        if not hasattr(strategy, "scheduled_layers"):
            continue
        schedule = layer_schedule(strategy, num_layers, max_new_tokens)
        if schedule is None or schedule.skips:
            raise UserError(
                f"{strategy!r} (--skip) would have no effect: this module decodes in validations only, and with "
                "generate_every=0 in none of them. Give --model.generate_every=1 to decode in each, or leave --skip "
                "out. To train with the layers that it runs, name it in --model.skip_strategies."
            )
