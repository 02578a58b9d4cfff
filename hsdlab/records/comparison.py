"""From the results of several strategies to one comparison: intervals, shares of the baseline, speed-ups.

Layers saved are never called a speed-up: the speed-up is the measured one, a decode step against the
baseline's, the prompt pass apart, and stands beside the average layers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from hsdlab.errors import UserError
from hsdlab.metrics import bleu_from_statistics
from hsdlab.records import bootstrap
from hsdlab.records.bootstrap import CorpusFigure, FloatArray, bootstrap_interval, paired_interval
from hsdlab.records.files import plain, replace_figure, replace_file
from hsdlab.reporting import tables
from hsdlab.reporting.depth import depth_figure
from hsdlab.reporting.pareto import pareto_figure

SCHEMA_VERSION = 1
BASELINE_CLASS = "FullDepth"
HEADLINE_METRIC = "rougeL"
TIMES = ("decode_step_ms", "tokens_per_second", "prompt_ms")  # of efficiency
BLEU_STATISTICS = 10  # system and reference length, correct and total 1- to 4-grams


@dataclass(frozen=True)
class StrategyResult:
    """What one strategy gave on one data set.

    Args:
        name: the strategy as the user wrote it, such as "HSD(num_skipped=1, min_exit=0, max_exit=15)".
        strategy: {"class_path", "init_args"}.
        num_layers: the model's decoder layers.
        scores: corpus figures from 0 to 1, by the names of `hsdlab.metrics`.
        efficiency: any of average_layers, share_skipped, compute_layers, decode_step_ms, tokens_per_second,
            prompt_ms, flops_per_token, cache_peak_mib; not a number where there was no decode step.
        examples: the records of the prediction file: id, source, prediction, references, new_tokens, tokens,
            average_layers, layers, scores, bleu_statistics. What lacks tokens or layers has no depth picture.
        is_oracle: whether it looked at layers that it claims not to have run; its times are then left out.
    """

    name: str
    strategy: dict[str, Any]
    num_layers: int
    scores: dict[str, float]
    efficiency: dict[str, float]
    examples: list[dict[str, Any]]
    is_oracle: bool = False

    @property
    def class_name(self) -> str:
        """The strategy's class without its module."""
        return str(self.strategy["class_path"]).rpartition(".")[2]

    def to_json(self) -> str:
        """Return the result as JSON; what is not a number becomes null."""
        return json.dumps(plain(asdict(self)), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> StrategyResult:
        """Return the result that `to_json` wrote; null scores and costs become not-a-number again."""
        fields = json.loads(text)
        for name in ("scores", "efficiency"):
            fields[name] = {key: math.nan if v is None else v for key, v in fields[name].items()}
        return cls(**fields)


class Estimate(NamedTuple):
    """A figure with its interval; not a number where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One strategy's line in the tables.

    `number` is its place from 1 on, `quality` is from 0 to 1, `percent_of_baseline` has paired intervals,
    `output_tokens` is the mean length of a prediction, `speed_up` is the baseline's decode_step_ms over this
    one's.
    """

    number: int
    result: StrategyResult
    is_baseline: bool
    quality: dict[str, Estimate]
    percent_of_baseline: dict[str, Estimate]
    output_tokens: Estimate
    speed_up: float

    @property
    def label(self) -> str:
        """The name without package and keywords: "HSD(1, 0, 15)"."""
        return re.sub(r"^(\w+\.)+|\w+=|['\"]", "", self.result.name)

    @property
    def average_layers(self) -> float:
        """The mean depth of a decode step."""
        return self.cost("average_layers")

    @property
    def percent_of_layers(self) -> float:
        """The average layers as a percentage of the model's."""
        return 100 * self.average_layers / self.result.num_layers

    @property
    def saves_layers_but_no_time(self) -> bool:
        """Whether fewer layers ran and the decode step still took longer than the baseline's."""
        return self.average_layers < self.result.num_layers and self.speed_up < 1

    @property
    def faster_than_its_layers(self) -> bool:
        """Whether the measured speed-up is beyond what the layers that ran allow, 10 % apart: a sign of a busy machine.

        A step has costs outside the layers, so it cannot gain more than layers of the model / layers computed.
        """
        return self.speed_up > 1.1 * self.result.num_layers / self.cost("compute_layers")

    def cost(self, name: str) -> float:
        """Return a figure of the result's efficiency, not a number where it was not measured or means nothing."""
        if self.result.is_oracle and name in TIMES:
            return math.nan
        return self.result.efficiency.get(name, math.nan)


class Comparison:
    """Several strategies over the same examples and model, each against the baseline.

    Args:
        results: one a strategy, at least one. The baseline is the first FullDepth, else the first.
        run: provenance, as `run_provenance` gives it.

    Raises:
        UserError: if there is no result, or two strategies saw different examples.
    """

    def __init__(self, results: Sequence[StrategyResult], run: Mapping[str, Any]) -> None:
        if not results:
            raise UserError("Got no results to compare. Expected at least one finished strategy.")
        self.run = dict(run)
        self.baseline = next((r for r in results if r.class_name == BASELINE_CLASS), results[0])
        self.metrics = [name for name in tables.METRIC_LABELS if any(name in each.scores for each in results)]
        self._check_same_examples(results)
        self.rows = [self._row(number, result) for number, result in enumerate(results, start=1)]

    @property
    def has_full_depth(self) -> bool:
        """Whether the baseline is the whole model."""
        return self.baseline.class_name == BASELINE_CLASS

    @property
    def headline_metric(self) -> str:
        """The metric that pictures show: ROUGE-L, or the first one where it was not computed."""
        return HEADLINE_METRIC if HEADLINE_METRIC in self.metrics else next(iter(self.metrics), HEADLINE_METRIC)

    def to_markdown(self) -> str:
        """Return the tables, the notes and the run as Markdown, with links to pareto.png and depth.png."""
        run = json.dumps(plain(self.run), indent=2, ensure_ascii=False, default=str)
        return tables.markdown(self, run)

    def to_json(self) -> str:
        """Return the aggregated figures (no examples) as JSON; what is not a number becomes null."""
        document = {
            "schema_version": SCHEMA_VERSION,
            "run": self.run,
            "baseline": {"name": self.baseline.name, "is_full_depth": self.has_full_depth},
            "bootstrap": {
                "level": bootstrap.LEVEL,
                "resamples": bootstrap.RESAMPLES,
                "seed": bootstrap.SEED,
            },
            "strategies": [
                {
                    "name": row.result.name,
                    "strategy": row.result.strategy,
                    "num_layers": row.result.num_layers,
                    "is_oracle": row.result.is_oracle,
                    "examples": len(row.result.examples),
                    "quality": {name: figure._asdict() for name, figure in row.quality.items()},
                    "percent_of_baseline": {name: figure._asdict() for name, figure in row.percent_of_baseline.items()},
                    "output_tokens": row.output_tokens._asdict(),
                    "cost": {name: row.cost(name) for name in row.result.efficiency}
                    | {"percent_of_layers": row.percent_of_layers},
                    "speed_up": row.speed_up,
                    "saves_layers_but_no_time": row.saves_layers_but_no_time,
                    "faster_than_its_layers": row.faster_than_its_layers,
                }
                for row in self.rows
            ],
        }
        return json.dumps(plain(document), indent=2, ensure_ascii=False, default=str) + "\n"

    def print(self, console: Console) -> None:
        """Print quality above cost on a terminal of at least 120 columns."""
        tables.print_tables(self, console)

    def write(self, folder: Path) -> None:
        """Write comparison.md, comparison.json, pareto.png and depth.png, each whole or not at all.

        Args:
            folder: made if missing; files of an earlier comparison are replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        pictures = {"pareto.png": pareto_figure(self, self.headline_metric), "depth.png": depth_figure(self.rows)}
        replace_file(folder / "comparison.json", self.to_json())
        for name, figure in pictures.items():
            replace_figure(folder / name, figure)
        replace_file(folder / "comparison.md", self.to_markdown())

    def _check_same_examples(self, results: Sequence[StrategyResult]) -> None:
        """Refuse results that no paired interval can compare."""
        expected = _ids(self.baseline)
        for result in results:
            if _ids(result) != expected:
                raise UserError(
                    f"Got {len(result.examples)} examples from {result.name} and {len(expected)} from "
                    f"{self.baseline.name}, with other ids. Expected the same examples from each strategy: "
                    "run them with the same data set, limit and seed."
                )

    def _row(self, number: int, result: StrategyResult) -> Row:
        quality, percent = {}, {}
        for metric in self.metrics:
            value, reference = (each.scores.get(metric, math.nan) for each in (result, self.baseline))
            statistics, baseline_statistics = (_statistics(each, metric) for each in (result, self.baseline))
            compute = _corpus_figure(metric)
            quality[metric] = Estimate(value, *bootstrap_interval(statistics, compute))
            low, high = paired_interval(statistics, baseline_statistics, compute)
            percent[metric] = Estimate(100 * _ratio(value, reference), 100 * low, 100 * high)
        tokens = [example["new_tokens"] for example in result.examples]
        mean_tokens = float(np.mean(tokens)) if tokens else math.nan
        steps_ms = [each.efficiency.get("decode_step_ms", math.nan) for each in (self.baseline, result)]
        return Row(
            number=number,
            result=result,
            is_baseline=result is self.baseline,
            quality=quality,
            percent_of_baseline=percent,
            output_tokens=Estimate(mean_tokens, *bootstrap_interval(tokens)),
            speed_up=math.nan if result.is_oracle else _ratio(*steps_ms),
        )


def _ids(result: StrategyResult) -> list[str]:
    return sorted(str(example["id"]) for example in result.examples)


def _statistics(result: StrategyResult, metric: str) -> FloatArray:
    """Return the metric's statistics in the order of the ids, [examples, 10] for BLEU, else [examples].

    Where an example lacks them they are not a number, and so is the interval: part of a corpus is no corpus.
    """
    examples = sorted(result.examples, key=lambda example: str(example["id"]))
    if metric.startswith("bleu"):
        missing = [math.nan] * BLEU_STATISTICS
        rows = [example.get("bleu_statistics") or missing for example in examples]
        return np.array(rows, dtype=float).reshape(-1, BLEU_STATISTICS)
    return np.array([example["scores"].get(metric) for example in examples], dtype=float)


def _corpus_figure(metric: str) -> CorpusFigure | None:
    """Return how a metric comes from summed statistics, None for a mean over examples."""
    if not metric.startswith("bleu"):
        return None
    return lambda sums: _bleu(tuple(sums.astype(int).tolist()))[metric]


@lru_cache(maxsize=4 * bootstrap.RESAMPLES)  # the four orders, and the baseline each time, share their sums
def _bleu(sums: tuple[int, ...]) -> dict[str, float]:
    return bleu_from_statistics(list(sums))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
