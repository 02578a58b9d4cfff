"""Read what hsdlab 0.1 wrote: turn the content of its files into that of the present records.

Version 1 kept derived figures and not the counts behind them. The cost is therefore missing, and only its figures are
known. A prediction file held the counts, but no late key and value computations, intermediate predictions and bytes.
The bytes are then NaN, the other two 0.
"""

from __future__ import annotations

from typing import Any

Content = dict[str, Any]
_NAN = float("nan")

_COUNTS = {
    "num_layers": "num_layers",
    "depth_sum": "executed_layers",
    "live_steps": "decode_steps",
    "compute_depth_sum": "computed_layers",
    "compute_steps": "computed_steps",
    "decode_seconds": "decode_s",
    "decode_passes": "decode_passes",
    "prompt_seconds": "prompt_s",
    "prompts": "prompt_passes",
    "flops": "flops",
    "cache_bytes": "peak_cache_bytes",
}


def example(content: Content) -> Content:
    """Upgrade a line of a prediction file.

    Args:
        content: The parsed line, without hash and version.

    Returns:
        The fields of :class:`hsdlab.records.example.ExampleRecord`.
    """
    batch = content["batch"]
    cost = {_COUNTS[name]: value for name, value in batch.items() if name not in ("number", "rows")}
    cost["wall_s"] = cost["prompt_s"] + cost["decode_s"]
    cost["bytes_read"] = _NAN
    return content | {"batch": {"number": batch["number"], "rows": batch["rows"], "cost": cost}}


def comparison(content: Content) -> Content:
    """Upgrade comparison.json.

    Args:
        content: The parsed file.

    Returns:
        The fields of :class:`hsdlab.records.comparison.Comparison`; the rows have no cost.
    """
    baseline = content["baseline"]["name"]
    rows = [
        {
            "number": number,
            "name": row["name"],
            "strategy": row["strategy"],
            "num_layers": row["num_layers"],
            "is_oracle": row["is_oracle"],
            "is_baseline": row["name"] == baseline,
            "examples": row["examples"],
            "quality": {name: _estimate(figure) for name, figure in row["quality"].items()},
            "percent_of_baseline": {name: _estimate(figure) for name, figure in row["percent_of_baseline"].items()},
            "output_tokens": _estimate(row["output_tokens"]),
            "figures": _figures(row["cost"]),
            "speed_up": _number(row["speed_up"]),
            "measured": row.get("measured"),
        }
        for number, row in enumerate(content["strategies"], start=1)
    ]
    return {"run": content["run"], "rows": rows, "bootstrap": content["bootstrap"]}


def tuning(content: Content) -> Content:
    """Upgrade tuning.json.

    Args:
        content: The parsed file.

    Returns:
        The fields of :class:`hsdlab.records.tuning.TuningResult`; only `percent_of_baseline` has intervals.
    """
    metric, examples = content["metric"], content["examples"]
    settings = content["settings"]
    names = [each["name"] for each in settings]
    frontier = [names.index(each["name"]) for each in content["frontier"]]
    decoded = [
        {"place": place, "met_goal": each["verdict"], "decoded": each["decoded"]}
        for place, each in enumerate(content["frontier"])
        if each["decoded"] is not None
    ]
    rows = [_cost_row(1, content["reference"], examples, metric, {"value": 100.0, "low": 100.0, "high": 100.0})]
    rows += [
        _cost_row(number, each["decoded"], examples, metric, each["decoded"]["percent_of_full_depth"])
        for number, each in enumerate(decoded, start=2)
    ]
    chosen = [each["place"] for each in decoded if each["decoded"]["name"] == content["chosen"]["name"]]
    return {
        "run": content["run"],
        "goal": content["goal"],
        "metric": metric,
        "scored_texts": content["scored_texts"],
        "reference_nats_per_token": _number(content["reference"]["nats_per_token"]),
        "settings": settings,
        "frontier": frontier,
        "decoded": [{"place": each["place"], "met_goal": each["met_goal"]} for each in decoded],
        "comparison": {"run": content["run"], "rows": rows, "bootstrap": {}},
        "chosen": chosen[0] if chosen else None,
        "another_might_be_better": False,
    }


def bench(content: Content) -> Content:
    """Upgrade bench.json.

    Args:
        content: The parsed file.

    Returns:
        The fields of :class:`hsdlab.records.bench.BenchResult`.
    """
    return content | {"model": _model(content["model"])}


def inspection(content: Content) -> Content:
    """Upgrade inspect.json.

    Args:
        content: The parsed file.

    Returns:
        The fields of :class:`hsdlab.records.inspection.InspectionResult`.
    """
    layers = [
        {name: _estimate(v) if isinstance(v, dict) else v for name, v in row.items()} for row in content["layers"]
    ]
    whole = {name: _estimate(content[name]) for name in ("loss", "oracle_layers", "saturated_layers")}
    return content | whole | {"layers": layers, "model": _model(content["model"])}


def _model(content: Content) -> Content:
    return {"class_name" if name == "class" else name: value for name, value in content.items()}


def _cost_row(number: int, content: Content, examples: int, metric: str, percent: Content) -> Content:
    """Return the comparison row of a strategy that a tuning noted by its figures, without intervals."""
    return {
        "number": number,
        "name": content["name"],
        "strategy": content["strategy"],
        "num_layers": content["num_layers"],
        "is_oracle": False,
        "is_baseline": number == 1,
        "examples": examples,
        "quality": {name: {"value": _number(score)} for name, score in content["scores"].items()},
        "percent_of_baseline": {metric: _estimate(percent)},
        "output_tokens": {"value": _NAN},
        "figures": _figures(content["cost"]),
        "speed_up": _number(content["speed_up"]),
    }


def _figures(cost: Content) -> Content:
    """Return the figures without the percentage of layers, which follows from others."""
    return {name: _number(value) for name, value in cost.items() if name != "percent_of_layers"}


def _estimate(figure: Content) -> Content:
    return {name: _number(value) for name, value in figure.items()}


def _number(value: float | None) -> float:
    """Return a number; null stood for NaN."""
    return _NAN if value is None else value
