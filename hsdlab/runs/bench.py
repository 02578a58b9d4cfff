"""Decode steps under each strategy against full depth, and full depth against plain ``model.generate``.

Batch 1, greedy, on the same prompts. Every side makes exactly ``new_tokens`` tokens: ``eos_token_id=None``
switches the end of a sequence off and leaves no logits processor and the length as the only stopping
criterion, whereas ``min_new_tokens`` would add two processors over the vocabulary to each step. All sides cut
the prompt pass off at the same point, where the first decode step enters layer 0, and end when transformers'
``generate`` returns.
"""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from hsdlab.decoding import DecodeOutput, Timing, generate
from hsdlab.decoding.cost import decode_flops, ideal_speedup
from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.timing import now_s
from hsdlab.errors import RunError, UserError
from hsdlab.records.files import replace_file
from hsdlab.reporting.bench import markdown, print_table
from hsdlab.runs.timing import Side, interleave, ratio_spread, spread
from hsdlab.strategies.base import SkipStrategy
from hsdlab.strategies.full_depth import FullDepth

SCHEMA_VERSION = 1
WARMUP_ROUNDS = 1
PLAIN, FULL_DEPTH = "plain generate", "FullDepth"
OPTIONS = {"do_sample": False, "num_beams": 1, "eos_token_id": None}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_SPINCOUNT")


class _PlainSide:
    """transformers' own ``generate``; keeps the tokens of each prompt."""

    def __init__(self, model: nn.Module, prompts: Sequence[Tensor], new_tokens: int) -> None:
        self._parts = decoder_parts(model)
        self._prompts = prompts
        self._new_tokens = new_tokens
        self.sequences: dict[int, Tensor] = {}

    def __call__(self, case: int) -> Timing:
        model, prompt = self._parts.model, self._prompts[case]
        mask = torch.ones_like(prompt)
        passes = itertools.count()
        readings_s: list[float] = []

        def read_clock(module: nn.Module, args: tuple[Any, ...]) -> None:
            if next(passes) == 1:  # the pass after the prompt's
                readings_s.append(now_s(model.device))
                hook.remove()  # the steps that follow run without it

        hook = self._parts.layers[0].register_forward_pre_hook(read_clock)
        try:
            readings_s.append(now_s(model.device))
            sequences = model.generate(prompt, attention_mask=mask, max_new_tokens=self._new_tokens, **OPTIONS)
            readings_s.append(now_s(model.device))
        finally:
            hook.remove()
        self.sequences[case] = sequences
        start, first_step, end = readings_s
        return Timing(first_step - start, end - first_step, sequences.shape[1] - prompt.shape[1] - 1)


class _StrategySide:
    """``hsdlab.generate`` under one strategy; keeps the last output of each prompt."""

    def __init__(self, model: nn.Module, prompts: Sequence[Tensor], new_tokens: int, strategy: SkipStrategy) -> None:
        self._model = model
        self._prompts = prompts
        self._new_tokens = new_tokens
        self.strategy = strategy
        self.outputs: dict[int, DecodeOutput] = {}

    def __call__(self, case: int) -> Timing:
        prompt = self._prompts[case]
        self.outputs[case] = generate(
            self._model,
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            strategy=self.strategy,
            max_new_tokens=self._new_tokens,
            **OPTIONS,
        )
        return self.outputs[case].timing

    def costs(self) -> dict[str, float | None]:
        """Depth and cost over all prompts; the ideal speed-up only where the layers are known beforehand."""
        traces = [output.trace for output in self.outputs.values()]
        steps = sum(trace.compute_steps for trace in traces)
        schedule = self.strategy.scheduled_layers(traces[0].num_layers, self._new_tokens)
        if hasattr(self.strategy, "should_exit"):  # may leave the schedule early
            schedule = None
        return {
            "average_layers": sum(trace.compute_depth_sum for trace in traces) / steps,
            "ideal_speed_up": None if schedule is None else ideal_speedup(self._model, schedule),
            "flops_per_token": sum(decode_flops(self._model, trace) for trace in traces) / steps,
            "cache_mib": max(output.cache_bytes for output in self.outputs.values()) / 2**20,
        }


def run_bench(
    model: nn.Module,
    prompts: Sequence[Tensor],
    strategies: Sequence[SkipStrategy],
    *,
    new_tokens: int,
    repeats: int,
    output: Path,
    run: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure plain ``generate``, full depth and some strategies, interleaved; print and write the result.

    Args:
        model: A decoder-only transformers model in eval mode.
        prompts: Token ids, each [1, length]; the same in every round.
        strategies: What is measured besides plain ``generate`` and full depth.
        new_tokens: Tokens that every side makes from each prompt, at least 2: the first needs no step.
        repeats: Measured rounds, at least 1; one more comes before them as warm-up.
        output: Folder for bench.json and bench.md; made if missing, files of an earlier run are replaced.
        run: Provenance of the run for bench.json (versions, commit, machine), ready for JSON.

    Returns:
        What bench.json holds. ``sides`` lists plain generate, FullDepth and the strategies, each with its
        figures (a spread is ``median``, ``low`` and ``high`` over the rounds; None where a figure does not
        apply) and the raw ``prompt_s``, ``decode_s`` and ``decode_passes`` [rounds][prompts].

    Raises:
        UserError: For bad prompts, ``new_tokens`` or ``repeats``, and for an oracle.
        RunError: If full depth makes other tokens than plain ``generate``.
    """
    _check_arguments(prompts, strategies, new_tokens, repeats)
    device = next(model.parameters()).device
    prompts = [prompt.to(device) for prompt in prompts]
    plain = _PlainSide(model, prompts, new_tokens)
    full_depth, *others = [
        _StrategySide(model, prompts, new_tokens, strategy) for strategy in (FullDepth(), *strategies)
    ]
    sides: list[Side] = [plain, full_depth, *others]
    load_before = _load_average()
    # No refresh in the background: its thread would compete with what is measured.
    with torch.inference_mode(), Progress(auto_refresh=False) as progress:
        total = (WARMUP_ROUNDS + repeats) * len(sides) * len(prompts)
        task = progress.add_task("decoding", total=total)

        def rounds(number: int) -> list[list[list[Timing]]]:
            return interleave(
                sides,
                cases=len(prompts),
                rounds=number,
                after_run=lambda: progress.update(task, advance=1, refresh=True),
            )

        rounds(WARMUP_ROUNDS)
        _check_same_tokens(plain, full_depth)
        timings = rounds(repeats)

    report = {
        "version": SCHEMA_VERSION,
        "model": describe_model(model),
        "prompt_tokens": [prompt.shape[1] for prompt in prompts],
        "new_tokens": new_tokens,
        "repeats": repeats,
        "warmup_rounds": WARMUP_ROUNDS,
        "environment": {
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
            "load_average_before": load_before,
            "load_average_after": _load_average(),
        },
        "run": run,
        "sides": [
            _figures(PLAIN, {}, timings[0], timings),
            _figures(FULL_DEPTH, full_depth.costs(), timings[1], timings),
            *(
                _figures(repr(side.strategy), side.costs(), rows, timings)
                for side, rows in zip(others, timings[2:], strict=True)
            ),
        ],
    }
    print_table(report)
    output.mkdir(parents=True, exist_ok=True)
    replace_file(output / "bench.json", json.dumps(report, indent=1))
    replace_file(output / "bench.md", markdown(report))
    return report


def _figures(
    name: str,
    costs: dict[str, float | None],
    rounds: list[list[Timing]],
    all_sides: list[list[list[Timing]]],
) -> dict[str, Any]:
    """One side of the report."""
    plain_s, full_depth_s = (_decode_s(side) for side in all_sides[:2])
    decode_s = _decode_s(rounds)
    passes = [sum(timing.decode_passes for timing in row) for row in rounds]
    step_s = [seconds / count for seconds, count in zip(decode_s, passes, strict=True)]
    speed_up = ratio_spread(full_depth_s, decode_s)
    ideal = costs.get("ideal_speed_up")
    return {
        "name": name,
        "average_layers": costs.get("average_layers"),
        "decode_step_ms": spread([1e3 * seconds for seconds in step_s])._asdict(),
        "tokens_per_second": spread([1 / seconds for seconds in step_s])._asdict(),
        "speed_up": speed_up._asdict(),
        "ideal_speed_up": ideal,
        "reached": speed_up.median / ideal if ideal else None,
        "time_over_plain": ratio_spread(decode_s, plain_s)._asdict(),
        "prompt_ms": spread([1e3 * sum(t.prompt_s for t in row) / len(row) for row in rounds])._asdict(),
        "flops_per_token": costs.get("flops_per_token"),
        "cache_mib": costs.get("cache_mib"),
        "prompt_s": [[timing.prompt_s for timing in row] for row in rounds],
        "decode_s": [[timing.decode_s for timing in row] for row in rounds],
        "decode_passes": [[timing.decode_passes for timing in row] for row in rounds],
    }


def _decode_s(rounds: list[list[Timing]]) -> list[float]:
    """Seconds of all decode steps of each round."""
    return [sum(timing.decode_s for timing in row) for row in rounds]


def _check_arguments(
    prompts: Sequence[Tensor], strategies: Sequence[SkipStrategy], new_tokens: int, repeats: int
) -> None:
    if not prompts:
        raise UserError("prompts: got none; expected at least one.")
    for strategy in strategies:
        if strategy.is_oracle:
            raise UserError(
                f"strategies: {strategy!r} is an oracle, which runs layers that it claims not to have run; its time "
                "means nothing. Compare its text and depth with 'evaluate.py compare'."
            )
    for index, prompt in enumerate(prompts):
        if prompt.dim() != 2 or prompt.shape[0] != 1 or prompt.shape[1] == 0:
            raise UserError(f"prompts[{index}]: got shape {tuple(prompt.shape)}; expected (1, length).")
    if new_tokens < 2:
        raise UserError(f"new_tokens is {new_tokens}; expected at least 2: the first needs no decode step.")
    if repeats < 1:
        raise UserError(f"repeats is {repeats}; expected at least 1.")


def _check_same_tokens(plain: _PlainSide, full_depth: _StrategySide) -> None:
    """Raise RuntimeError unless full depth decodes what plain ``generate`` does."""
    for case, sequence in plain.sequences.items():
        ours = full_depth.outputs[case].sequences
        if not torch.equal(ours, sequence):
            raise RunError(
                f"FullDepth and plain generate made different tokens from prompt {case}: {ours.tolist()} "
                f"against {sequence.tolist()}. Their times cannot be compared; please report this (with a "
                "model in reduced precision, try float32 first)."
            )


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return the model's name, class, dtype, device, layers and parameters, for a report."""
    parts = decoder_parts(model)
    return {
        "name": parts.model.name_or_path,
        "class": type(parts.model).__name__,
        "dtype": str(parts.model.dtype).removeprefix("torch."),
        "device": str(parts.model.device),
        "num_layers": parts.num_layers,
        "parameters": parts.model.num_parameters(),
    }


def _load_average() -> list[float] | None:
    """Mean number of running processes over 1, 5 and 15 minutes; None where the system does not tell."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None
