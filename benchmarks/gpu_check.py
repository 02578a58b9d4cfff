"""Check on a CUDA GPU what needs one: its tests, and the goals of compiled decoding (`make gpu-check`).

    python -m benchmarks.gpu_check          # about 10 minutes; writes docs/results/gpu.json

A model of random weights with the sizes of TinyLlama (1.1 billion parameters, 22 layers), bfloat16. It serves for
time, not for text. Plain `generate` on its static cache, which transformers compiles, FullDepth and schedules of half
of the layers take turns on the same prompts. A ratio is taken within a round, medians and quartiles over the rounds.
The exit status is 1 where a test fails or a goal is missed, and 2 without a GPU.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hsdlab import HSD, FullDepth, StaticDepth
from hsdlab.decoding.compiled import Compilation
from hsdlab.records.bench import FULL_DEPTH, PLAIN_COMPILED
from hsdlab.records.provenance import run_info
from hsdlab.runs.bench_cells import Batch
from hsdlab.runs.bench_sides import PlainCompiledSide, StrategySide
from hsdlab.runs.timing import interleave, ratio_spread, spread

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs/results/gpu.json"
TESTS = "tests/decoding/test_compiled_on_gpu.py"
BATCH_SIZES = (1, 32)
PROMPT_TOKENS, NEW_TOKENS = 128, 128
WARMUP_ROUNDS, ROUNDS = 2, 9
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "eos_token_id": None,
    "pad_token_id": 0,
}
MOST_OVER_PLAIN = 1.05
"""FullDepth's time over that of plain `generate`, both compiled: the goal at every batch size."""
LEAST_SPEED_UP = {1: 1.5, 32: 1.3}
"""Speed-up of half of the layers over FullDepth, both compiled: the goal by batch size."""


def random_model(device: str, dtype: torch.dtype, **sizes: Any) -> PreTrainedModel:
    """Make a Llama with random weights on a device."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes), dtype=dtype).eval()


def measure(
    model: PreTrainedModel,
    rows: int,
    *,
    compile: bool | Compilation = True,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    rounds: int = ROUNDS,
    warmup_rounds: int = WARMUP_ROUNDS,
) -> dict[str, Any]:
    """Time all sides at one batch size; return what is recorded of it."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, model.config.vocab_size, (rows, prompt_tokens), generator=generator).to(model.device)
    batches = [Batch(ids, torch.ones_like(ids))]
    options = {"max_new_tokens": new_tokens, "eos_token_id": None, "do_sample": False}
    half = model.config.num_hidden_layers // 2
    strategies = [FullDepth(), StaticDepth(half), HSD(1, 0, half)]
    ours = [StrategySide(model, batches, options, strategy, compile) for strategy in strategies]
    names = [PLAIN_COMPILED, FULL_DEPTH, *map(repr, strategies[1:])]
    sides = [PlainCompiledSide(model, batches, options), *ours]
    interleave(sides, cases=1, rounds=1)
    warmups = {name: asdict(side.outputs[0].warmup) for name, side in zip(names[1:], ours, strict=True)}
    interleave(sides, cases=1, rounds=warmup_rounds - 1)
    timings = interleave(sides, cases=1, rounds=rounds)
    step_ms = {
        name: [1e3 * timing.decode_s / timing.decode_passes for (timing,) in of_side]
        for name, of_side in zip(names, timings, strict=True)
    }
    figures = {
        name: {
            **(side.costs() if isinstance(side, StrategySide) else {}),
            "step_ms": asdict(spread(step_ms[name])),
            "step_ms_of_each_round": step_ms[name],
            "time_over_plain_compiled": asdict(ratio_spread(step_ms[name], step_ms[PLAIN_COMPILED])),
            "speed_up_over_full_depth": asdict(ratio_spread(step_ms[FULL_DEPTH], step_ms[name])),
            "warmup": warmups.get(name),
        }
        for name, side in zip(names, sides, strict=True)
    }
    return {"batch_size": rows, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "sides": figures}


def goals(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare the figures with the goals."""
    found = []
    for cell in cells:
        rows, sides = cell["batch_size"], cell["sides"]
        over_plain = sides[FULL_DEPTH]["time_over_plain_compiled"]["median"]
        what = f"FullDepth ÷ plain generate, both compiled, batch {rows}: at most {MOST_OVER_PLAIN}"
        found.append({"goal": what, "measured": over_plain, "met": over_plain <= MOST_OVER_PLAIN})
        name = next(name for name in sides if name.startswith(StaticDepth.__name__))
        speed_up, least = sides[name]["speed_up_over_full_depth"]["median"], LEAST_SPEED_UP[rows]
        what = f"half of the layers over FullDepth, both compiled, batch {rows}: at least {least}×"
        found.append({"goal": what, "measured": speed_up, "met": speed_up >= least})
    return found


def card() -> dict[str, Any]:
    """Describe the GPU."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }


def main() -> int:
    """Run the tests and the measurement; write the record; return the exit status."""
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA GPU, and torch finds none here; nothing was run or written.", file=sys.stderr)
        return 2
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", TESTS], cwd=ROOT)
    model = random_model("cuda", torch.bfloat16, **SIZES)
    cells = [measure(model, rows) for rows in BATCH_SIZES]
    reached = goals(cells)
    record = {
        "card": card(),
        "dtype": "bfloat16",
        "parameters": model.num_parameters(),
        "sizes": SIZES,
        "rounds": ROUNDS,
        "tests_passed": tests.returncode == 0,
        "goals": reached,
        "cells": cells,
        "run": asdict(run_info(subcommand="gpu-check")),
    }
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    for each in reached:
        print(f"{'met   ' if each['met'] else 'MISSED'}  {each['goal']}; measured {each['measured']:.2f}")
    print(f"{card()['name']}: {RECORD.relative_to(ROOT)} was written; commit it.")
    return 0 if tests.returncode == 0 and all(each["met"] for each in reached) else 1


if __name__ == "__main__":
    sys.exit(main())
