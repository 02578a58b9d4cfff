"""The cost of decoding over batches and processes: the cost ledger as a torchmetrics metric."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hsdlab.costs import MAXIMA, Cost
from hsdlab.metrics.base import SumMetric, zero

COUNTS = tuple(each.name for each in fields(Cost) if each.type == "int")
LAYERS = tuple(each.name for each in fields(Cost) if each.type == "int | float")
"""Counts in which attention or MLP of a layer is a half."""


class Efficiency(SumMetric):
    """Depth, time, FLOPs, bytes and cache memory of all decode steps so far: a sum of :class:`~hsdlab.costs.Cost`.

    It measures nothing itself. The caller that decodes measures the costs, with times taken after the device was
    synchronised. Over several processes it adds up as costs do.

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
        """Add the cost of one or more calls of ``generate``.

        Args:
            cost: The cost of the calls.

        Raises:
            UserError: The model has another number of layers than before.
        """
        for name, value in vars(self._cost(num_layers=int(self.num_layers)) + cost).items():
            state = getattr(self, name)
            if name in ("num_layers", *MAXIMA):
                setattr(self, name, state.clamp(min=value))
            else:
                self._add(**{name: value})

    def compute(self) -> dict[str, Tensor]:
        """Compute the figures of the summed cost.

        Returns:
            The figures of :meth:`hsdlab.costs.Cost.figures`, float64 tensors []; NaN where nothing was measured.
        """
        device = self.num_layers.device
        return {
            name: torch.tensor(value, dtype=torch.float64, device=device)
            for name, value in self.cost().figures().items()
        }

    def cost(self) -> Cost:
        """Read the sum as a cost.

        Returns:
            The cost so far, of this process only, unless the metric is synchronised.
        """
        return self._cost(**{each.name: getattr(self, each.name).item() for each in fields(Cost)})

    @staticmethod
    def _cost(**values: float) -> Cost:
        whole = [name for name, value in values.items() if name in COUNTS or (name in LAYERS and value == int(value))]
        return Cost(**(values | {name: int(values[name]) for name in whole}))  # type: ignore[arg-type]
