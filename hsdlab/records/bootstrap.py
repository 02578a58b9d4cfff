"""Percentile bootstrap over examples, for means and for corpus figures such as BLEU.

A corpus figure is a function of statistics that are summed over the examples. A resampled corpus therefore needs no
second look at the texts: a matrix of how often each example was drawn, times the statistics, gives all resampled sums
at once. The paired interval draws the same examples for both strategies, as Koehn (2004, "Statistical Significance
Tests for Machine Translation Evaluation") does for BLEU. What makes an example hard then cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hsdlab.errors import UserError

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0

FloatArray = NDArray[np.float64]
CorpusFigure = Callable[[FloatArray], float]
"""Computes a corpus figure from the statistics summed over all examples, float64 [k]."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: The figure.
        low: Lower end of the interval, in the unit of the figure; NaN where there is no interval.
        high: Upper end, likewise.
    """

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class BootstrapSettings:
    """How intervals were computed.

    Attributes:
        level: Share of the resampled figures inside the interval, between 0 and 1.
        resamples: Number of resampled corpora.
        seed: Random seed of the draw.
    """

    level: float = LEVEL
    resamples: int = RESAMPLES
    seed: int = SEED


def bootstrap_interval(
    statistics: ArrayLike,
    compute: CorpusFigure | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> tuple[float, float]:
    """Compute the percentile interval of a corpus figure over resampled examples.

    Args:
        statistics: [examples, k], one row per example; [examples] is taken as k = 1.
        compute: Computes the figure from the summed statistics; None for the mean of the one column.
        resamples: Number of resampled corpora, at least 1.
        level: Share of the resampled figures inside, between 0 and 1.
        seed: Random seed. The same seed and number of examples draw the same examples.

    Returns:
        (low, high), in the unit of the figure. Both are NaN for fewer than two examples, which tell nothing about
        spread, and where a statistic or a resampled figure is NaN.

    Raises:
        UserError: The statistics have another shape, or resamples or level are out of range.
    """
    rows = _as_rows(statistics, compute)
    return _percentiles(_resampled(rows, compute, resamples, seed), level)


def paired_interval(
    statistics: ArrayLike,
    baseline: ArrayLike,
    compute: CorpusFigure | None = None,
    *,
    contrast: Literal["ratio", "difference"] = "ratio",
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> tuple[float, float]:
    """Compute the interval of the ratio or difference to a baseline over the same resampled examples.

    Args:
        statistics: [examples, k] of the strategy; [examples] is taken as k = 1.
        baseline: The same of the baseline, with the same examples in the same order.
        compute: Computes the figure from the summed statistics; None for the mean of the one column.
        contrast: "ratio" for figure / baseline figure, "difference" for figure - baseline figure.
        resamples: Number of resampled corpora, at least 1.
        level: Share of the resampled figures inside, between 0 and 1.
        seed: Random seed. The same seed and number of examples draw the same examples.

    Returns:
        (low, high). Both are NaN for fewer than two examples, and where a resampled baseline is zero.

    Raises:
        UserError: The two statistics differ in shape, or an argument is out of range.
    """
    rows, baseline_rows = _as_rows(statistics, compute), _as_rows(baseline, compute)
    if rows.shape != baseline_rows.shape:
        raise UserError(
            f"Got statistics of shape {rows.shape} and a baseline of shape {baseline_rows.shape}. "
            "Expected the same examples, in the same order, in both."
        )
    figures = _resampled(rows, compute, resamples, seed)
    baseline_figures = _resampled(baseline_rows, compute, resamples, seed)
    if contrast == "difference":
        return _percentiles(figures - baseline_figures, level)
    if contrast == "ratio":
        with np.errstate(divide="ignore", invalid="ignore"):
            return _percentiles(figures / baseline_figures, level)
    raise UserError(f"Got contrast {contrast!r}. Expected 'ratio' or 'difference'.")


def _as_rows(statistics: ArrayLike, compute: CorpusFigure | None) -> FloatArray:
    """Return the statistics as [examples, k]."""
    rows = np.asarray(statistics, dtype=np.float64)
    if rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2:
        raise UserError(f"Got statistics of shape {rows.shape}. Expected [examples] or [examples, k].")
    if compute is None and rows.shape[1] != 1:
        raise UserError(f"Got {rows.shape[1]} statistics an example. A mean needs one; else pass `compute`.")
    return rows


def _resampled(rows: FloatArray, compute: CorpusFigure | None, resamples: int, seed: int) -> FloatArray:
    """Return the figure of each resampled corpus, [resamples]; NaN where there is no interval."""
    if resamples < 1:
        raise UserError(f"Got resamples={resamples}. Expected at least 1.")
    examples = len(rows)
    if examples < 2 or np.isnan(rows).any():
        return np.full(resamples, np.nan)
    sums: FloatArray = _drawn(examples, resamples, seed) @ rows  # (resamples, k)
    if compute is None:
        return sums[:, 0] / examples
    return np.array([compute(row) for row in sums])


@lru_cache(maxsize=1)  # a comparison uses the same draw for each strategy and metric
def _drawn(examples: int, resamples: int, seed: int) -> FloatArray:
    """Return how often each resample drew each example, [resamples, examples]."""
    shares = np.full(examples, 1 / examples)
    counts = np.random.default_rng(seed).multinomial(examples, shares, size=resamples).astype(np.float64)
    counts.flags.writeable = False
    return counts


def _percentiles(figures: FloatArray, level: float) -> tuple[float, float]:
    """Return the two percentiles that leave `level` between them."""
    if not 0 < level < 1:
        raise UserError(f"Got level={level}. Expected a share between 0 and 1, such as 0.95.")
    if not np.isfinite(figures).all():
        return float("nan"), float("nan")
    low, high = np.percentile(figures, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
