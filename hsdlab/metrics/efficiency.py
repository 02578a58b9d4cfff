"""What decoding cost, over batches and processes: the cost ledger as a torchmetrics metric."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hsdlab.costs import MAXIMA, Cost
from hsdlab.metrics.base import SumMetric, zero

COUNTS = tuple(each.name for each in fields(Cost) if each.type == "int")


class Efficiency(SumMetric):
    """Depth, time, FLOPs, bytes and cache memory of all decode steps so far: a :class:`~hsdlab.costs.Cost` that grows.

    It measures nothing itself: the costs come from who decoded, with times taken after the device was synchronised.
    Over several processes it adds up as costs do.

    Args:
        **kwargs: See torchmetrics' `Metric`.

    Example:
        >>> metric = Efficiency()
        >>> metric.update(Cost(num_layers=30, decode_steps=4, executed_layers=60, decode_passes=4, decode_s=0.2))
        >>> figures = metric.compute()
        >>> figures["average_layers"].item(), figures["decode_step_ms"].item()
        (15.0, 50.0)
    """

    num_layers: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for each in fields(Cost):
            largest = each.name in ("num_layers", *MAXIMA)
            self.add_state(each.name, zero(), dist_reduce_fx="max" if largest else "sum")

    def update(self, cost: Cost) -> None:
        """Add what one or more calls of ``generate`` cost.

        Args:
            cost: Of the calls.

        Raises:
            UserError: It is that of a model with another number of layers than before.
        """
        for name, value in vars(self._cost(num_layers=int(self.num_layers)) + cost).items():
            state = getattr(self, name)
            if name in ("num_layers", *MAXIMA):
                setattr(self, name, state.clamp(min=value))
            else:
                self._add(**{name: value})

    def compute(self) -> dict[str, Tensor]:
        """Return the figures of the cost (:meth:`hsdlab.costs.Cost.figures`), 0-dim float64 tensors."""
        device = self.num_layers.device
        return {
            name: torch.tensor(value, dtype=torch.float64, device=device)
            for name, value in self.cost().figures().items()
        }

    def cost(self) -> Cost:
        """Return the cost so far, of this process unless the metric is synchronised."""
        return self._cost(**{each.name: getattr(self, each.name).item() for each in fields(Cost)})

    @staticmethod
    def _cost(**values: float) -> Cost:
        return Cost(**{name: int(value) if name in COUNTS else value for name, value in values.items()})  # type: ignore[arg-type]
