"""Decode steps under each strategy against full depth, and full depth against plain ``model.generate``.

Batch 1, greedy, on the same prompts (`bench_sides.py`). All cut the prefill off at the same point, where the first
decode step enters layer 0, and end when transformers' ``generate`` returns.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from hsdlab.data import GenerationDataModule
from hsdlab.decoding import Timing
from hsdlab.decoding.families import context_length, plain_model
from hsdlab.errors import RunError, UserError
from hsdlab.models.generation import fixed_length, generation
from hsdlab.modules import DecodeModule
from hsdlab.progress import Steps
from hsdlab.records.bench import BenchEnvironment, BenchResult, BenchSide
from hsdlab.records.provenance import RunInfo, run_info
from hsdlab.reporting.bench import print_bench, write_bench
from hsdlab.reporting.tables import console
from hsdlab.runs.bench_sides import PlainSide, StrategySide
from hsdlab.runs.folder import holding_folder
from hsdlab.runs.model_info import model_info
from hsdlab.runs.strategies import check_strategies
from hsdlab.runs.timing import Side, interleave, ratio_spread, spread
from hsdlab.strategies.base import SkipStrategy
from hsdlab.strategies.full_depth import FullDepth

WARMUP_ROUNDS = 1
PLAIN, FULL_DEPTH = "plain generate", "FullDepth"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_SPINCOUNT")


@holding_folder
def bench(
    trainer: Trainer,
    module: DecodeModule,
    datamodule: GenerationDataModule,
    strategies: Sequence[SkipStrategy],
    folder: str | Path,
    *,
    prompts: int = 4,
    new_tokens: int = 50,
    repeats: int = 5,
    run: RunInfo | None = None,
) -> BenchResult:
    """Measure the speed of decode steps, batch 1 and greedy, in alternation with plain `model.generate`.

    Args:
        trainer: Only its device is used.
        module: Gives the loaded model and its generate_kwargs.
        datamodule: Gives the prompts: the first ones of its test split.
        strategies: Strategies to measure besides full depth.
        folder: Folder for bench.json and bench.md. A missing folder is created.
        prompts: Number of prompts.
        new_tokens: Tokens to decode from each prompt, 2 or more.
        repeats: How often each strategy decodes each prompt, after one round of warm-up.
        run: Provenance for the record. None notes it now.

    Returns:
        The figures of plain generate, FullDepth and the strategies, with the raw times of each round.

    Raises:
        UserError: The split holds fewer prompts, or as `run_bench` says.
    """
    return run_bench(
        module.model.to(trainer.strategy.root_device),
        first_prompts(module, datamodule, prompts, new_tokens),
        strategies,
        new_tokens=new_tokens,
        repeats=repeats,
        generate_kwargs=module.generate_kwargs,
        folder=Path(folder),
        run=run,
    )


def first_prompts(module: DecodeModule, datamodule: GenerationDataModule, number: int, new_tokens: int) -> list[Tensor]:
    """Encode the first prompts of the test split.

    Args:
        module: Gives the tokenizer, and the context length of its model.
        datamodule: Prompts are cut to its max_prompt_tokens; without one, so that the new tokens fit the context.
        number: Number of prompts.
        new_tokens: Tokens to decode from each prompt.

    Returns:
        LongTensors [1, length] on the CPU, not padded.

    Raises:
        UserError: The split holds fewer examples, or the new tokens leave no room for a prompt.
    """
    context = context_length(module.model)
    room = None if context is None else context - new_tokens
    if room is not None and room < 1:
        raise UserError(f"new_tokens={new_tokens} does not fit the model's context of {context} tokens; give fewer.")
    datamodule.prepare_data()
    examples = datamodule.examples("test")[:number]
    if len(examples) < number:
        raise UserError(f"prompts={number}: the test split of the data holds only {len(examples)} examples.")
    limit = datamodule.max_prompt_tokens or room
    encoded = [datamodule.template.encode(example.source, module.tokenizer, limit) for example in examples]
    return [torch.tensor([token_ids]) for token_ids, _ in encoded]


def check_bench(strategies: Sequence[SkipStrategy], prompts: int, new_tokens: int, repeats: int, examples: int) -> None:
    """Refuse what can be refused before a model is loaded.

    Args:
        strategies: Strategies to measure besides full depth. Oracles are refused.
        prompts: Number of prompts.
        new_tokens: Tokens to decode from each prompt, 2 or more.
        repeats: Measured rounds, 1 or more.
        examples: Number of examples in the test split, at least `prompts`.

    Raises:
        UserError: One of them is out of its range; the message names the option.
    """
    check_strategies(strategies)
    if examples < prompts:
        raise UserError(f"prompts={prompts}: the test split of the data holds only {examples} examples.")
    for strategy in strategies:
        if strategy.is_oracle:
            raise UserError(
                f"strategies: {strategy!r} is an oracle, which runs layers that it claims not to have run; its time "
                "means nothing. Compare its text and depth with 'evaluate.py compare'."
            )
    if new_tokens < 2:
        raise UserError(f"new_tokens is {new_tokens}; expected at least 2: the first needs no decode step.")
    if repeats < 1:
        raise UserError(f"repeats is {repeats}; expected at least 1.")


def run_bench(
    model: nn.Module,
    prompts: Sequence[Tensor],
    strategies: Sequence[SkipStrategy],
    *,
    new_tokens: int,
    repeats: int,
    folder: Path,
    generate_kwargs: Mapping[str, Any] | None = None,
    run: RunInfo | None = None,
) -> BenchResult:
    """Measure plain ``generate``, full depth and some strategies, interleaved; print and write the result.

    Args:
        model: A decoder-only transformers model in eval mode.
        prompts: Token ids, each [1, length]; the same in every round.
        strategies: Strategies to measure besides plain ``generate`` and full depth.
        new_tokens: Tokens that each side decodes from each prompt, 2 or more: the first needs no step.
        repeats: Measured rounds, 1 or more, after one round of warm-up.
        folder: Folder for bench.json and bench.md. A missing folder is created, files of an earlier run are replaced.
        generate_kwargs: More options of ``generate``. Those for sampling, beams and the end of a text have no effect.
        run: Provenance for the record. None notes it now.

    Returns:
        The figures of plain generate, FullDepth and the strategies, with the raw times of each round.

    Raises:
        UserError: For bad prompts, ``new_tokens`` or ``repeats``, and for an oracle.
        RunError: If full depth makes other tokens than plain ``generate``.
    """
    _check_arguments(prompts, strategies, new_tokens, repeats)
    device = next(model.parameters()).device
    prompts = [prompt.to(device) for prompt in prompts]
    decoding = generation(plain_model(model), fixed_length(generate_kwargs or {}) | {"max_new_tokens": new_tokens})
    plain = PlainSide(model, prompts, decoding.options)
    full_depth, *others = [
        StrategySide(model, prompts, decoding.options, strategy) for strategy in (FullDepth(), *strategies)
    ]
    sides: list[Side] = [plain, full_depth, *others]
    load_before = _load_average()
    total = (WARMUP_ROUNDS + repeats) * len(sides) * len(prompts)
    # No refresh in the background: its thread would compete with what is measured.
    with torch.inference_mode(), Steps("Decoding", total, "texts", background=False) as steps:

        def rounds(number: int) -> list[list[list[Timing]]]:
            return interleave(
                sides,
                cases=len(prompts),
                rounds=number,
                after_run=steps.advance,
            )

        rounds(WARMUP_ROUNDS)
        _check_same_tokens(plain, full_depth)
        timings = rounds(repeats)

    result = BenchResult(
        model=model_info(model),
        prompt_tokens=tuple(prompt.shape[1] for prompt in prompts),
        new_tokens=new_tokens,
        repeats=repeats,
        warmup_rounds=WARMUP_ROUNDS,
        environment=BenchEnvironment(
            threads=torch.get_num_threads(),
            interop_threads=torch.get_num_interop_threads(),
            variables={name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
            load_average_before=load_before,
            load_average_after=_load_average(),
        ),
        sides=(
            _side(PLAIN, {}, timings[0], timings),
            _side(FULL_DEPTH, full_depth.costs(), timings[1], timings),
            *(
                _side(repr(side.strategy), side.costs(), rows, timings)
                for side, rows in zip(others, timings[2:], strict=True)
            ),
        ),
        run=run or run_info(generation=decoding.record()),
    )
    print_bench(result, console())
    write_bench(result, folder)
    return result


def _side(
    name: str,
    costs: dict[str, float | None],
    rounds: list[list[Timing]],
    all_sides: list[list[list[Timing]]],
) -> BenchSide:
    """Return the figures of one side."""
    plain_s, full_depth_s = (_decode_s(side) for side in all_sides[:2])
    decode_s = _decode_s(rounds)
    passes = [sum(timing.decode_passes for timing in row) for row in rounds]
    step_s = [seconds / count for seconds, count in zip(decode_s, passes, strict=True)]
    speed_up = ratio_spread(full_depth_s, decode_s)
    ideal = costs.get("ideal_speed_up")
    return BenchSide(
        name=name,
        average_layers=costs.get("average_layers"),
        decode_step_ms=spread([1e3 * seconds for seconds in step_s]),
        tokens_per_second=spread([1 / seconds for seconds in step_s]),
        speed_up=speed_up,
        ideal_speed_up=ideal,
        reached=speed_up.median / ideal if ideal else None,
        time_over_plain=ratio_spread(decode_s, plain_s),
        prompt_ms=spread([1e3 * sum(t.prompt_s for t in row) / len(row) for row in rounds]),
        flops_per_token=costs.get("flops_per_token"),
        cache_mib=costs.get("cache_mib"),
        prompt_s=tuple(tuple(timing.prompt_s for timing in row) for row in rounds),
        decode_s=tuple(tuple(timing.decode_s for timing in row) for row in rounds),
        decode_passes=tuple(tuple(timing.decode_passes for timing in row) for row in rounds),
    )


def _decode_s(rounds: list[list[Timing]]) -> list[float]:
    """Seconds of all decode steps of each round."""
    return [sum(timing.decode_s for timing in row) for row in rounds]


def _check_arguments(
    prompts: Sequence[Tensor], strategies: Sequence[SkipStrategy], new_tokens: int, repeats: int
) -> None:
    if not prompts:
        raise UserError("prompts: got none; expected at least one.")
    check_bench(strategies, len(prompts), new_tokens, repeats, examples=len(prompts))
    for index, prompt in enumerate(prompts):
        if prompt.dim() != 2 or prompt.shape[0] != 1 or prompt.shape[1] == 0:
            raise UserError(f"prompts[{index}]: got shape {tuple(prompt.shape)}; expected (1, length).")


def _check_same_tokens(plain: PlainSide, full_depth: StrategySide) -> None:
    """Raise RuntimeError unless full depth decodes what plain ``generate`` does."""
    for case, sequence in plain.sequences.items():
        ours = full_depth.outputs[case].sequences
        if not torch.equal(ours, sequence):
            raise RunError(
                f"FullDepth and plain generate made different tokens from prompt {case}: {ours.tolist()} "
                f"against {sequence.tolist()}. Their times cannot be compared; please report this (with a "
                "model in reduced precision, try float32 first)."
            )


def _load_average() -> tuple[float, ...] | None:
    """Mean number of running processes over 1, 5 and 15 minutes; None where the system does not tell."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None
