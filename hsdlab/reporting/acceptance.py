"""How many drafts full depth accepted, by their place in the draft: notes below a table, and a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hsdlab.records.bootstrap import FloatArray
from hsdlab.records.comparison import ComparisonRow
from hsdlab.records.example import ExampleRecord
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.reporting.pareto import COLOURS, FAINT, INK, MARKERS


def accepted_by_place(examples: Sequence[ExampleRecord]) -> FloatArray:
    """Compute how often the first draft was accepted, the second, and so on.

    Args:
        examples: Only their ``drafts`` are read.

    Returns:
        Float64 [most drafts], 0 to 1. It is the share that accepted so many drafts or more, among the verifications
        with so many or more. Empty where nothing was drafted.
    """
    rounds = [each for example in examples for each in example.drafts]
    most = max((drafted for drafted, _ in rounds), default=0)
    places = np.arange(1, most + 1)
    if not most:
        return np.zeros(0)
    drafted, accepted = np.array(rounds).T[:, :, None]  # (verifications, 1)
    return (accepted >= places).sum(axis=0) / (drafted >= places).sum(axis=0)


def acceptance_notes(rows: Sequence[ComparisonRow]) -> list[str]:
    """Say what became of the drafts of each strategy that verifies them.

    Args:
        rows: Rows of a comparison.

    Returns:
        One note for each such strategy, and one that explains them; none without any.
    """
    verified = [row for row in rows if row.verifies]
    notes = [
        f"{row.number} {row.label}: {row.figure('acceptance_rate'):.0%} of the drafted tokens were accepted, "
        f"{row.figure('tokens_per_verification'):.2f} tokens per verification, "
        f"{row.figure('compute_layers'):.1f} layers computed per token."
        for row in verified
    ]
    if verified:
        notes.append(
            "With verified drafts, the text is that of full depth. Computed layers count all drafts, rejected ones too,"
            " and verifications. A decode step is one that full depth would have taken."
        )
    return notes


def acceptance_figure(rows: Sequence[ComparisonRow], results: Sequence[StrategyResult]) -> Figure | None:
    """Draw the acceptance by place in the draft, a line for each strategy that verifies drafts.

    Args:
        rows: Rows of a comparison.
        results: The result of each row, with its examples.

    Returns:
        A figure on the Agg canvas, apart from pyplot's global state; None where no drafts were recorded.
    """
    lines = [(row, accepted_by_place(result.examples)) for row, result in zip(rows, results, strict=True)]
    lines = [(row, shares) for row, shares in lines if len(shares)]
    if not lines:
        return None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, (row, shares) in enumerate(lines):
        axes.plot(
            range(1, len(shares) + 1),
            shares,
            color=COLOURS[1 + place % (len(COLOURS) - 1)],  # the first is that of FullDepth in other pictures
            marker=MARKERS[1 + place % (len(MARKERS) - 1)],
            clip_on=False,
            label=f"{row.number}  {row.label}",
        )
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("Place in the draft", color=INK)
    axes.set_ylabel("Verifications that accepted the draft\nup to here", color=INK)
    axes.grid(color=FAINT, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    legend = figure.legend(loc="outside lower center", frameon=False, labelcolor=INK, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
