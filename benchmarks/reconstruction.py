"""Fill docs/reconstruction.md with what its claims rest on: ``python -m benchmarks.reconstruction``.

The published figures stand in tests/strategies/test_paper_tables.py; a test fails when the page is stale.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.markers import filled
from hsdlab import HSD, ScheduledStrategy, SkipDecode
from hsdlab.reporting.markdown import markdown_table
from tests.strategies.test_paper_tables import COLUMNS, PUBLISHED

PAGE = Path(__file__).parents[1] / "docs/reconstruction.md"
TOLERANCE = 0.015  # layers
DATA_SETS = {
    "cnn_dailymail": "CNN/DM",
    "xsum": "XSum",
    "e2e_nlg": "E2E",
    "common_gen": "CommonGen",
    "healthcaremagic": "HealthCareMagic",
}
Bottom = Callable[[int], Sequence[int]]  # number of layers -> the layers that run in every step


def setting(strategy: ScheduledStrategy) -> str:
    """The short name of a setting in the page."""
    names = {HSD: ("num_skipped", "min_exit", "max_exit"), SkipDecode: ("min_exit", "max_exit")}[type(strategy)]
    return f"{type(strategy).__name__}({', '.join(str(strategy.parameters()[name]) for name in names)})"


def average(strategy: ScheduledStrategy, num_layers: int, max_steps: int) -> float:
    """The mean depth over the decode steps that hsdlab's own strategy schedules."""
    schedule = strategy.scheduled_layers(num_layers, max_steps)
    return sum(map(len, schedule)) / len(schedule)


def table() -> str:
    """Published and computed averages, every setting × every column."""
    heads = [f"{DATA_SETS[data]}, {model}" for data, _, model, _ in COLUMNS]
    rows, differences, beyond_rounding = [], [], 0
    for strategy, figures in PUBLISHED:
        cells = []
        for (_, max_steps, _, num_layers), published in zip(COLUMNS, figures, strict=True):
            computed = average(strategy, num_layers, max_steps)
            differences.append(abs(computed - published))
            beyond_rounding += differences[-1] > 0.005 + 1e-9
            cells.append(f"{published:.2f} / {computed:.3f}")
        rows.append([f"`{setting(strategy)}`", *cells])
    summary = (
        f"{len(differences)} cells; largest difference {max(differences):.4f} layers, mean "
        f"{sum(differences) / len(differences):.4f}; {beyond_rounding} differ by more than the rounding of the "
        "published figures to two decimals explains (0.005)."
    )
    return markdown_table(["Setting", *heads], rows) + f"\n\n{summary}"


def other_readings() -> str:
    """How far other readings of the formula are from the tables."""
    readings: list[tuple[str, Callable[[ScheduledStrategy, int, int], float]]] = [
        ("as above", _average),
        ("halves rounded up instead of to the even number", lambda s, n, t: _average(s, n, t, rounded=_half_up)),
        ("rounded down", lambda s, n, t: _average(s, n, t, rounded=math.floor)),
        ("rounded up", lambda s, n, t: _average(s, n, t, rounded=math.ceil)),
        ("T - 1 in place of T", lambda s, n, t: _average(s, n, t, fall=t - 1)),
        ("mean over T steps in place of T - 1", lambda s, n, t: _average(s, n, t, steps=range(t))),
        ("first decode step is t = 1", lambda s, n, t: _average(s, n, t, steps=range(1, t))),
        ("the prefill counted as a step", lambda s, n, t: (_average(s, n, t) * (t - 1) + n) / t),
    ]
    rows = []
    for name, reading in readings:
        differences = [
            abs(reading(strategy, num_layers, max_steps) - published)
            for strategy, figures in PUBLISHED
            for (_, max_steps, _, num_layers), published in zip(COLUMNS, figures, strict=True)
        ]
        within = sum(difference <= TOLERANCE for difference in differences)
        rows.append([name, f"{within} of {len(differences)}", f"{max(differences):.3f}"])
    return markdown_table(["Formula", "Cells within 0.015", "Largest difference, layers"], rows)


def lengths() -> str:
    """Which T fit all cells of a data set, of 10 to 250."""
    rows = []
    for data, name in DATA_SETS.items():
        columns = [i for i, column in enumerate(COLUMNS) if column[0] == data]
        fitting = [
            max_steps
            for max_steps in range(10, 251)
            if all(
                abs(_average(strategy, COLUMNS[i][3], max_steps) - figures[i]) <= TOLERANCE
                for strategy, figures in PUBLISHED
                for i in columns
            )
        ]
        found = str(*fitting) if len(fitting) == 1 else f"{len(fitting)}, from {fitting[0]} to {fitting[-1]}"
        rows.append([name, str(COLUMNS[columns[0]][1]), found])
    header = ["Data set", "T used", "T from 10 to 250 that fit all 16 cells"]
    return markdown_table(header, rows, align=["left", "right", "left"])


def other_settings() -> str:
    """Which settings, of all that were tried, fit all ten columns of a row."""
    rows = []
    for strategy, figures in PUBLISHED:
        hsd = isinstance(strategy, HSD)
        bottoms = _hierarchies() if hsd else _warm_ups()
        budgets = [(low, high) for high in range(33) for low in range(high + 1)]
        fitting = [
            f"{name} ({low}, {high})"
            for name, bottom in bottoms.items()
            for low, high in budgets
            if _fits(bottom, low, high, figures)
        ]
        rows.append([f"`{setting(strategy)}`", f"{len(bottoms) * len(budgets):,}", "; ".join(fitting)])
    header = ["Row", "Settings tried", "Settings that fit all ten columns"]
    return markdown_table(header, rows, align=["left", "right", "left"])


def _hierarchies() -> dict[str, Bottom]:
    return {
        f"i mod {s + 1} = {offset}": lambda layers, s=s, offset=offset: range(offset, layers, s + 1)
        for s in range(1, 6)
        for offset in range(s + 1)
    }


def _warm_ups() -> dict[str, Bottom]:
    return {f"warmup {warmup}": lambda layers, warmup=warmup: range(warmup) for warmup in range(6)}


def _half_up(value: float) -> int:
    return math.floor(value + 0.5)


def _bottom(strategy: ScheduledStrategy) -> Bottom:
    """The layers that a setting runs in every step, written here once more, apart from the package."""
    if isinstance(strategy, HSD):
        return lambda layers: range(0, layers, strategy.num_skipped + 1)
    return lambda layers: range(strategy.parameters()["warmup"])


def _depths(bottom: Sequence[int], layers: int) -> list[int]:
    """How many layers run, by the number of layers scheduled at the top."""
    return [len({*bottom, *range(layers - top, layers)}) for top in range(layers + 1)]


def _average(
    strategy: ScheduledStrategy,
    num_layers: int,
    max_steps: int,
    rounded: Callable[[float], int] = round,
    fall: int | None = None,
    steps: Sequence[int] | None = None,
) -> float:
    low, high = strategy.parameters()["min_exit"], strategy.parameters()["max_exit"]
    steps = range(max_steps - 1) if steps is None else steps
    depths = _depths(_bottom(strategy)(num_layers), num_layers)
    tops = [max(1, rounded(high - (high - low) * step / (fall or max_steps))) for step in steps]
    return sum(depths[top] for top in tops) / len(tops)


def _fits(bottom: Bottom, low: int, high: int, figures: Sequence[float]) -> bool:
    for (_, max_steps, _, num_layers), published in sorted(zip(COLUMNS, figures, strict=True), key=lambda c: c[0][1]):
        depths = _depths(bottom(num_layers), num_layers)
        tops = [max(1, round(high - (high - low) * step / max_steps)) for step in range(max_steps - 1)]
        if abs(sum(depths[top] for top in tops) / len(tops) - published) > TOLERANCE:
            return False
    return True


def page(text: str) -> str:
    """Return the page with its generated parts filled anew."""
    parts = {"table": table, "readings": other_readings, "lengths": lengths, "settings": other_settings}
    for name, content in parts.items():
        text = filled(text, name, content())
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE} is up to date.")
