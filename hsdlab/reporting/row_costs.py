"""The few costs of a strategy that a report of a choice shows: layers, time, speed-up."""

from __future__ import annotations

from typing import Any

from hsdlab.records.comparison import Row
from hsdlab.reporting import tables

COSTS = ("Avg. layers", "ms per decode step", "Measured speed-up")  # of tables.COST_HEADER


def cost_cells(row: Row) -> list[str]:
    """Return the cells under `COSTS`."""
    cells = dict(zip(tables.COST_HEADER, tables.costs(row), strict=True))
    return [cells[name] for name in COSTS]


def cost_in_words(row: Row) -> str:
    """Say how deep and how fast a strategy is."""
    layers, step, speed_up = cost_cells(row)
    text = f"{layers} of {row.result.num_layers} layers on average"
    if row.faster_than_its_layers:
        return f"{text}; times of this run are not to be trusted"
    text += f", {step} ms per decode step"
    return text if row.is_baseline else f"{text}, {speed_up.split()[0]} the speed of full depth"


def cost_document(row: Row) -> dict[str, Any]:
    """Return a strategy with its scores and costs, for JSON."""
    return {
        "name": row.result.name,
        "strategy": row.result.strategy,
        "num_layers": row.result.num_layers,
        "scores": row.result.scores,
        "cost": {name: row.cost(name) for name in row.result.efficiency},
        "speed_up": row.speed_up,
    }
