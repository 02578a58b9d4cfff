"""Read what version 2 of a record wrote: turn its content into that of version 3."""

from __future__ import annotations

from typing import Any

Content = dict[str, Any]

_OF_A_CELL = ("prompt_tokens", "sides")


def bench(content: Content) -> Content:
    """Upgrade bench.json, which held one cell: batch size 1, greedy, in the dtype in which the model was loaded.

    Args:
        content: The parsed file, without kind and version.

    Returns:
        The fields of :class:`hsdlab.records.bench.BenchResult`.
    """
    cell = {name: content[name] for name in _OF_A_CELL}
    cell |= {"batch_size": 1, "num_beams": 1, "dtype": content["model"]["dtype"]}
    result = {name: value for name, value in content.items() if name not in _OF_A_CELL}
    if "not_finite" in result:  # its keys are places, and the sides have another one
        places = result["not_finite"].items()
        result["not_finite"] = {_moved(place): value for place, value in places}
    return result | {"cells": [cell], "planned_cells": 1}


def _moved(place: str) -> str:
    return f"/cells/0{place}" if place.startswith("/sides/") else place
