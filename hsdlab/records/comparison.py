"""Comparison: several strategies on the same examples, each against the baseline, with intervals.

A speed-up is always a measured time, decode step against the baseline's decode step, without the prefill. Skipped
layers are reported beside it as the average layers, and never as a speed-up.

Longer than 300 lines, because the attributes of the records are described beside the code that computes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np

from hsdlab.costs import Cost
from hsdlab.errors import UserError
from hsdlab.metrics import bleu_from_statistics
from hsdlab.records import bootstrap, version_1
from hsdlab.records.bootstrap import (
    BootstrapSettings,
    CorpusFigure,
    Estimate,
    FloatArray,
    bootstrap_interval,
    paired_interval,
)
from hsdlab.records.document import Document, Upgrade
from hsdlab.records.example import batch_costs_by_number
from hsdlab.records.labels import METRIC_LABELS
from hsdlab.records.provenance import RunInfo
from hsdlab.records.strategy import StrategyConfig
from hsdlab.records.strategy_result import StrategyResult

BASELINE_CLASS = "FullDepth"
HEADLINE_METRIC = "rougeL"
TIMES = ("decode_step_ms", "tokens_per_second", "prompt_ms")
"""Figures that are meaningless for an oracle, which computes the layers that it reports as skipped."""
BLEU_STATISTICS = 10  # system and reference length, correct and total 1- to 4-grams


@dataclass(frozen=True)
class Measured:
    """When and with which commit a row was measured; noted where one comparison holds rows of several runs.

    Attributes:
        date_utc: When the run began, ISO 8601.
        commit: 40 hex digits; None outside git.
        dirty: Whether tracked files differed from the commit; None outside git.
    """

    date_utc: str
    commit: str | None
    dirty: bool | None

    @classmethod
    def by(cls, run: RunInfo) -> Measured:
        """Take date and commit from a run.

        Args:
            run: The run that measured the row.

        Returns:
            The same, without the rest of the provenance.
        """
        git = run.git
        return cls(run.date_utc, None if git is None else git.commit, None if git is None else git.dirty)


@dataclass(frozen=True)
class ComparisonRow:
    """One strategy's line in the tables.

    Attributes:
        number: Its place, from 1 on.
        name: The strategy as the user wrote it.
        strategy: Its class and arguments.
        num_layers: L, the model's decoder layers.
        is_oracle: Whether it looks at layers that it reports as skipped.
        is_baseline: Whether the others are compared with it.
        examples: Number of examples.
        quality: Metric to corpus figure, from 0 to 1.
        percent_of_baseline: Metric to percentage of the baseline's figure, with paired intervals.
        output_tokens: Mean length of a prediction, tokens.
        figures: The figures of the cost, by the names of :meth:`hsdlab.costs.Cost.figures`.
        speed_up: The baseline's milliseconds per decode step divided by this one's; NaN for an oracle.
        cost: The counts behind the figures; None where an older version of hsdlab wrote the row.
        run: Name of the run that the row comes from, where several are compared; empty for one.
        resolved: The name with what depends on the model filled in, such as `max_exit`; empty in older records.
        measured: When it was measured, where the rows were measured at different times.
        speed_up_interval: (low, high) of the speed-up over the batches, each of which both strategies decoded in turn.
            None where they did not, for fewer than two batches, for an oracle, and where an older version of hsdlab
            wrote the row.
    """

    number: int
    name: str
    strategy: StrategyConfig
    num_layers: int
    is_oracle: bool
    is_baseline: bool
    examples: int
    quality: Mapping[str, Estimate]
    percent_of_baseline: Mapping[str, Estimate]
    output_tokens: Estimate
    figures: Mapping[str, float]
    speed_up: float
    cost: Cost | None = None
    run: str = ""
    measured: Measured | None = None
    resolved: str = ""
    speed_up_interval: tuple[float, float] | None = None

    @property
    def class_name(self) -> str:
        """The strategy's class without its module."""
        return self.strategy.class_name

    @property
    def label(self) -> str:
        """The name in all tables and pictures, "HSD(1, 0, 15)", after the run's name where several runs are compared.

        It has no keywords. `max_exit` and the like are those of the model, also where the user left them open.
        """
        short = re.sub(r"^(\w+\.)+|\w+=|['\"]", "", self.resolved or self.name).removesuffix("()")
        return f"{self.run}: {short}" if self.run else short

    @property
    def average_layers(self) -> float:
        """The average depth: executed layers per decode step."""
        return self.figure("average_layers")

    @property
    def percent_of_layers(self) -> float:
        """The average layers as a percentage of the model's."""
        return 100 * self.average_layers / self.num_layers

    @property
    def saves_layers_but_no_time(self) -> bool:
        """Whether layers were skipped, in text or drafts, and a decode step still took longer than the baseline's."""
        return (self.average_layers < self.num_layers or self.verifies) and self.speed_up < 1

    @property
    def faster_than_its_layers(self) -> bool:
        """Whether the speed-up is more than 10 % above what the executed layers allow: a sign of a busy machine.

        A decode step has costs outside the layers, so the speed-up cannot exceed layers of the model / layers computed.
        """
        if self.verifies:  # one verification reads the weights once for several tokens
            return False
        return self.speed_up > 1.1 * self.num_layers / self.figure("compute_layers")

    @property
    def verifies(self) -> bool:
        """Whether its drafts were verified (``Verified``): its text is that of full depth."""
        return math.isfinite(self.figure("acceptance_rate"))

    def figure(self, name: str) -> float:
        """Look up a figure of the cost.

        Args:
            name: One of :meth:`hsdlab.costs.Cost.figures`, such as "decode_step_ms".

        Returns:
            The figure; NaN where it was not measured, and for the times of an oracle.
        """
        if self.is_oracle and name in TIMES:
            return math.nan
        return self.figures.get(name, math.nan)


@dataclass(frozen=True)
class Comparison(Document):
    """Several strategies on the same examples, each against the baseline; comparison.json, without the examples.

    `compare_results` makes it.

    Attributes:
        run: Versions, commit, configuration and machine.
        rows: One per strategy, at least one.
        bootstrap: How the intervals were computed.
    """

    kind: ClassVar[str] = "comparison"
    upgrades: ClassVar[Mapping[int, Upgrade]] = {1: version_1.comparison}

    run: RunInfo
    rows: tuple[ComparisonRow, ...]
    bootstrap: BootstrapSettings = field(default_factory=BootstrapSettings)

    @property
    def baseline(self) -> ComparisonRow:
        """The row that the others are compared with."""
        return next(row for row in self.rows if row.is_baseline)

    @property
    def has_full_depth(self) -> bool:
        """Whether the baseline is `FullDepth`."""
        return self.baseline.class_name == BASELINE_CLASS

    @property
    def metrics(self) -> list[str]:
        """The metrics that at least one row has, in the order of the tables."""
        return [name for name in METRIC_LABELS if any(name in row.quality for row in self.rows)]

    @property
    def headline_metric(self) -> str:
        """The metric that plots show: ROUGE-L, or the first metric where ROUGE-L was not computed."""
        return HEADLINE_METRIC if HEADLINE_METRIC in self.metrics else next(iter(self.metrics), HEADLINE_METRIC)


def compare_results(
    results: Sequence[StrategyResult], run: RunInfo, run_names: Sequence[str] | None = None, *, in_turn: bool = False
) -> Comparison:
    """Compare results on the same examples.

    Args:
        results: One per strategy, at least one. The baseline is the first FullDepth, or else the first result.
        run: Provenance of the comparison.
        run_names: Where the results come from several runs, the name of the run of each; None for one run.
        in_turn: Whether each batch was decoded under all strategies before the next one. Only then do the batches tell
            about the spread of the speed-up: strategies that were decoded one after the other differ by the machine's
            drift too.

    Returns:
        One row per result in the same order, with bootstrap intervals over the examples. A metric that a result lacks
        is NaN there.

    Raises:
        UserError: There is no result, or two strategies saw different examples.
    """
    if not results:
        raise UserError("Got no results to compare. Expected at least one finished strategy.")
    baseline = next((result for result in results if result.class_name == BASELINE_CLASS), results[0])
    _check_same_examples(results, baseline)
    metrics = [name for name in METRIC_LABELS if any(name in each.scores for each in results)]
    names = run_names or [""] * len(results)
    rows = [
        _row(number, result, baseline, metrics, name, in_turn)
        for number, (result, name) in enumerate(zip(results, names, strict=True), start=1)
    ]
    return Comparison(run, tuple(rows))


def _check_same_examples(results: Sequence[StrategyResult], baseline: StrategyResult) -> None:
    """Refuse results with different examples, for which there is no paired interval."""
    expected = _ids(baseline)
    for result in results:
        if _ids(result) != expected:
            raise UserError(
                f"Got {len(result.examples)} examples from {result.name} and {len(expected)} from "
                f"{baseline.name}, with other ids. Expected the same examples from each strategy: "
                "run them with the same data set, limit and seed."
            )


def _row(
    number: int, result: StrategyResult, baseline: StrategyResult, metrics: Sequence[str], run_name: str, in_turn: bool
) -> ComparisonRow:
    quality, percent = {}, {}
    for metric in metrics:
        value, reference = (each.scores.get(metric, math.nan) for each in (result, baseline))
        statistics, baseline_statistics = (_statistics(each, metric) for each in (result, baseline))
        compute = _corpus_figure(metric)
        quality[metric] = Estimate(value, *bootstrap_interval(statistics, compute))
        low, high = paired_interval(statistics, baseline_statistics, compute)
        percent[metric] = Estimate(100 * _ratio(value, reference), 100 * low, 100 * high)
    tokens = [example.new_tokens for example in result.examples]
    figures = result.cost.figures()
    return ComparisonRow(
        number=number,
        name=result.name,
        strategy=result.strategy,
        num_layers=result.num_layers,
        is_oracle=result.is_oracle,
        is_baseline=result is baseline,
        examples=len(result.examples),
        quality=quality,
        percent_of_baseline=percent,
        output_tokens=Estimate(float(np.mean(tokens)) if tokens else math.nan, *bootstrap_interval(tokens)),
        figures=figures,
        speed_up=math.nan
        if result.is_oracle
        else _ratio(baseline.cost.figures()["decode_step_ms"], figures["decode_step_ms"]),
        cost=result.cost,
        run=run_name,
        resolved=result.resolved,
        speed_up_interval=_speed_up_interval(result, baseline) if in_turn and not result.is_oracle else None,
    )


def _speed_up_interval(result: StrategyResult, baseline: StrategyResult) -> tuple[float, float] | None:
    """Return the interval of the ratio of the two times of a decode step, drawing the same batches for both."""
    times, baseline_times = (
        {number: (cost.decode_s, cost.decode_passes) for number, cost in batch_costs_by_number(each.examples).items()}
        for each in (result, baseline)
    )
    if result is baseline or times.keys() != baseline_times.keys():
        return None
    statistics, baseline_statistics = ([each[number] for number in sorted(each)] for each in (baseline_times, times))
    interval = paired_interval(statistics, baseline_statistics, lambda sums: _ratio(sums[0], sums[1]))
    return interval if math.isfinite(sum(interval)) else None


def _ids(result: StrategyResult) -> list[str]:
    return sorted(example.id for example in result.examples)


def _statistics(result: StrategyResult, metric: str) -> FloatArray:
    """Return the metric's statistics in the order of the ids, [examples, 10] for BLEU, else [examples].

    Where one example lacks them they are NaN, and so is the interval: a part of the examples is another corpus.
    """
    examples = sorted(result.examples, key=lambda example: example.id)
    if metric.startswith("bleu"):
        missing = [math.nan] * BLEU_STATISTICS
        rows = [list(example.bleu_statistics or missing) for example in examples]
        return np.array(rows, dtype=float).reshape(-1, BLEU_STATISTICS)
    return np.array([example.scores.get(metric, math.nan) for example in examples], dtype=float)


def _corpus_figure(metric: str) -> CorpusFigure | None:
    """Return the function from summed statistics to the metric; None for a mean over examples."""
    if not metric.startswith("bleu"):
        return None
    return lambda sums: _bleu(tuple(sums.astype(int).tolist()))[metric]


@lru_cache(maxsize=4 * bootstrap.RESAMPLES)  # the four orders, and the baseline each time, share their sums
def _bleu(sums: tuple[int, ...]) -> dict[str, float]:
    return bleu_from_statistics(list(sums))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
