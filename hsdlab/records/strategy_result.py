"""StrategyResult: the result of one strategy on one data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from hsdlab.costs import Cost
from hsdlab.records.document import Document
from hsdlab.records.example import ExampleRecord
from hsdlab.records.provenance import RunInfo
from hsdlab.records.strategy import StrategyConfig


@dataclass(frozen=True)
class StrategyResult(Document):
    """The result of one strategy on one data set; result.json of a `test` or `validate` run, without its examples.

    Attributes:
        name: The strategy as the user wrote it, such as "HSD(num_skipped=1, min_exit=0, max_exit=15)".
        strategy: Its class and arguments.
        num_layers: L, the model's decoder layers.
        scores: Corpus figures from 0 to 1, by the names of `hsdlab.metrics`.
        cost: Of all examples.
        examples: One record per example. Those without `layers` are left out of plots of the depth.
        is_oracle: Whether the strategy looks at layers that it reports as skipped; its times are then left out.
        resolved: The name with what depends on the model filled in, such as `max_exit`; empty in older records.
        run: Versions, commit, configuration and machine; None where the result is part of a larger record.
    """

    kind: ClassVar[str] = "strategy result"

    name: str
    strategy: StrategyConfig
    num_layers: int
    scores: Mapping[str, float]
    cost: Cost
    examples: tuple[ExampleRecord, ...] = ()
    is_oracle: bool = False
    resolved: str = ""
    run: RunInfo | None = None

    @property
    def class_name(self) -> str:
        """The strategy's class without its module."""
        return self.strategy.class_name

    def figures(self) -> dict[str, float]:
        """Join quality and cost.

        Returns:
            The scores and the figures of the cost (:meth:`hsdlab.costs.Cost.figures`), by name.
        """
        return {**self.scores, **self.cost.figures()}

    def without_examples(self) -> StrategyResult:
        """Copy the result for result.json; the examples have a file of their own.

        Returns:
            The same with no examples.
        """
        return replace(self, examples=())
