"""What hsdlab 0.1 wrote, in small: content of its files, with figures that are known."""

from typing import Any

RUN = {
    "date_utc": "2026-11-25T19:05:31+00:00",
    "command": ["evaluate.py", "compare"],
    "seed": 0,
    "config": {"model": {"name": "m"}},
    "versions": {"hsdlab": "0.1.0", "bert-score": None},
    "git": {"commit": "ab" * 20, "dirty": True},
    "machine": {"cpu": "A", "cores": 2, "torch_threads": 1, "memory_gib": None, "gpus": [], "system": "Linux"},
}
"""Also all of run.json: a file without a version."""

MODEL = {"name": "m", "class": "Llama", "dtype": "float32", "device": "cpu", "num_layers": 4, "parameters": 7}


def interval(value: float | None) -> dict[str, float | None]:
    return {"value": value, "low": value, "high": None}


def strategy(name: str) -> dict[str, Any]:
    return {"name": name, "strategy": {"class_path": f"hsdlab.strategies.{name.partition('(')[0]}", "init_args": {}}}


def cost(layers: float, step_ms: float | None) -> dict[str, float | None]:
    return {"average_layers": layers, "decode_step_ms": step_ms, "percent_of_layers": 25 * layers}


def compared(name: str, layers: float, step_ms: float | None, speed_up: float | None) -> dict[str, Any]:
    """An entry of comparison.json."""
    return strategy(name) | {
        "num_layers": 4,
        "is_oracle": False,
        "examples": 2,
        "quality": {"rouge1": interval(layers / 5)},
        "percent_of_baseline": {"rouge1": interval(25 * layers)},
        "output_tokens": interval(4.0),
        "cost": cost(layers, step_ms),
        "speed_up": speed_up,
        "saves_layers_but_no_time": False,
        "faster_than_its_layers": False,
    }


COMPARISON = {
    "schema_version": 1,
    "run": RUN,
    "baseline": {"name": "FullDepth()", "is_full_depth": True},
    "bootstrap": {"level": 0.95, "resamples": 1000, "seed": 0},
    "strategies": [compared("FullDepth()", 4.0, 10.0, 1.0), compared("HSD()", 2.0, None, None)],
}

_TRIED = [
    strategy(f"HSD({n})") | {"average_layers": 3.0, "ideal_speed_up": 1.25, "nats_per_token": score}
    for n, score in enumerate((0.5, None, 0.75))
]
_REFERENCE = strategy("FullDepth()") | {
    "num_layers": 4,
    "scores": {"bleu4": 0.5},
    "cost": cost(4.0, 10.0),
    "speed_up": 1.0,
}
TUNING = {
    "schema_version": 1,
    "run": RUN,
    "goal": {"max_loss": 0.02, "speedup": None},
    "metric": "bleu4",
    "examples": 2,
    "scored_texts": 1,
    "summary": "HSD(2) is the fastest",
    "chosen": strategy("HSD(2)"),
    "reference": _REFERENCE | {"nats_per_token": 0.25},
    "frontier": [
        _TRIED[0] | {"verdict": None, "decoded": None},
        _TRIED[2]
        | {
            "verdict": True,
            "decoded": strategy("HSD(2)")
            | {"num_layers": 4, "scores": {"bleu4": 0.495}, "cost": cost(3.0, 8.0), "speed_up": 1.25}
            | {"percent_of_full_depth": {"value": 99.0, "low": 98.0, "high": 100.0}},
        },
    ],
    "settings": _TRIED,
}

_SPREAD = {"median": 2.0, "low": 1.0, "high": 3.0}
BENCH = {
    "version": 1,
    "model": MODEL,
    "prompt_tokens": [20],
    "new_tokens": 5,
    "repeats": 1,
    "warmup_rounds": 1,
    "environment": {
        **{"threads": 2, "interop_threads": 2, "variables": {}},
        **{"load_average_before": None, "load_average_after": [1.0, 2.0, 3.0]},
    },
    "run": RUN,
    "sides": [
        {
            **{"name": "plain generate", "average_layers": None, "ideal_speed_up": None, "reached": None},
            **dict.fromkeys(
                ("decode_step_ms", "tokens_per_second", "speed_up", "time_over_plain", "prompt_ms"), _SPREAD
            ),
            **{"flops_per_token": None, "cache_mib": None},
            **{"prompt_s": [[0.1]], "decode_s": [[0.2]], "decode_passes": [[4]]},
        }
    ],
}

_MEASURES = ("agreement", "saturation", "confidence", "cosine", "dropped_loss", "dropped_agreement")
INSPECTION = {
    "version": 1,
    "model": MODEL,
    "text": "the references",
    "examples": 2,
    "decode_steps": 6,
    "loss": interval(1.5),
    "oracle_layers": interval(2.5),
    "saturated_layers": interval(None),
    "cheapest_first": [1, 0],
    "layers": [{"layer": n} | dict.fromkeys(_MEASURES, interval(n / 4)) for n in range(2)],
    "run": RUN,
}


def prediction(name: str, layers: float) -> dict[str, Any]:
    """A line of a prediction file, of a batch of two."""
    return {
        "id": name,
        "source": "s",
        "references": ["a b c e"],
        "prediction": "a b c d",
        "new_tokens": 4,
        "token_ids": [5, 6, 7, 2],
        "tokens": ["a", " b", " c", " d"],
        "decode_steps": 3,
        "average_layers": layers,
        "layers": ["0,3"] * 3,
        "scores": {"rouge1": 0.75},
        "bleu_statistics": [4, 4, 3, 2, 1, 0, 4, 3, 2, 1],
        "batch": {
            "number": 0,
            "rows": 2,
            "num_layers": 4,
            "depth_sum": int(6 * layers),
            "live_steps": 6,
            "compute_depth_sum": int(7 * layers),
            "compute_steps": 7,
            "decode_seconds": 0.03,
            "decode_passes": 3,
            "prompt_seconds": 0.02,
            "prompts": 1,
            "flops": 6e9,
            "cache_bytes": 2**20,
        },
    }
