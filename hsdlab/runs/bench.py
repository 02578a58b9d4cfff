"""Decode steps under each strategy against full depth, and full depth against plain ``model.generate``.

Each cell of a matrix has its batch size, beams, dtype and length of prompts (`bench_cells.py`). In a cell, all sides
decode the same batches in alternation (`bench_sides.py`, `bench_limits.py`). All cut the prefill off at the same point,
where the first decode step enters its first layer, and end when transformers' ``generate`` returns.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from hsdlab.data import GenerationDataModule
from hsdlab.decoding import Timing
from hsdlab.decoding.cost import ideal_speedup
from hsdlab.decoding.families import plain_model
from hsdlab.decoding.sub_layers import SubLayers
from hsdlab.errors import RunError, UserError
from hsdlab.models.generation import fixed_length, generation
from hsdlab.models.quantization import weights_dtype
from hsdlab.modules import DecodeModule
from hsdlab.progress import Steps, part
from hsdlab.records.bench import (
    EARLY_EXIT,
    FULL_DEPTH,
    LAYERS_REMOVED,
    PLAIN,
    PLAIN_COMPILED,
    BenchCell,
    BenchResult,
    BenchSide,
    NotMeasured,
)
from hsdlab.records.provenance import RunInfo, run_info
from hsdlab.reporting.bench import FILE, print_bench, write_bench
from hsdlab.reporting.tables import console
from hsdlab.runs.bench_cells import BenchOptions, Cell, bench_cells, in_dtype_of
from hsdlab.runs.bench_limits import EarlyExitSide, LayersRemovedSide
from hsdlab.runs.bench_machine import PeakMemory, environment, load_average, peak_process_mib
from hsdlab.runs.bench_sides import PlainCompiledSide, PlainSide, StrategySide
from hsdlab.runs.folder import holding_folder
from hsdlab.runs.model_info import model_info
from hsdlab.runs.strategies import check_strategies
from hsdlab.runs.timing import interleave, ratio_spread, spread
from hsdlab.strategies.base import SkipStrategy
from hsdlab.strategies.full_depth import FullDepth

WARMUP_ROUNDS = 1


@holding_folder
def bench(
    trainer: Trainer,
    module: DecodeModule,
    datamodule: GenerationDataModule,
    strategies: Sequence[SkipStrategy],
    folder: str | Path,
    *,
    options: BenchOptions | None = None,
    run: RunInfo | None = None,
) -> BenchResult:
    """Measure the speed of decode steps in each cell of a matrix, in alternation with plain `model.generate`.

    Args:
        trainer: Only its device is used.
        module: Gives the loaded model and its generate_kwargs.
        datamodule: Gives the prompts: the first ones of its test split.
        strategies: Strategies to measure besides full depth.
        folder: Folder for bench.json, bench.md and bench.png. A missing folder is created.
        options: The cells, and how often each is measured. None for one cell: batch size 1, greedy, the model's dtype,
            the prompts as they are.
        run: Provenance for the record. None notes it now.

    Returns:
        The figures of plain generate, FullDepth and the strategies in each cell, with the raw times of each round.

    Raises:
        UserError: A cell does not fit the model or the data, or as `run_bench` says.
        RunError: As `run_bench` says.
    """
    options = options or BenchOptions()
    return run_bench(
        module.model.to(trainer.strategy.root_device),
        bench_cells(module, datamodule, options),
        strategies,
        options=options,
        generate_kwargs=module.generate_kwargs,
        compile=module.compiled,
        folder=Path(folder),
        run=run,
    )


def check_bench(strategies: Sequence[SkipStrategy], options: BenchOptions, examples: int) -> None:
    """Refuse what can be refused before a model is loaded.

    Args:
        strategies: Strategies to measure besides full depth. Oracles are refused.
        options: The cells, and how often each is measured.
        examples: Number of examples in the test split.

    Raises:
        UserError: One of them is out of its range; the message names the option.
    """
    check_strategies(strategies)
    options.check(examples)
    for strategy in strategies:
        if strategy.is_oracle:
            raise UserError(
                f"strategies: {strategy!r} is an oracle, which runs layers that it claims not to have run; its time "
                "means nothing. Compare its text and depth with 'evaluate.py compare'."
            )


def run_bench(
    model: nn.Module,
    cells: Sequence[Cell],
    strategies: Sequence[SkipStrategy],
    *,
    options: BenchOptions,
    folder: Path,
    generate_kwargs: Mapping[str, Any] | None = None,
    compile: bool = False,
    run: RunInfo | None = None,
) -> BenchResult:
    """Measure each cell; print and write the result. When it is cut short, the finished cells are printed and kept.

    Args:
        model: A transformers model in eval mode. For a cell of another dtype it is copied.
        cells: What is decoded. Its batches are the same in every round.
        strategies: Strategies to measure besides plain ``generate`` and full depth.
        options: Its new_tokens, repeats, removed_layers and assistant_early_exit. `cells` stands for the others.
        folder: Folder for bench.json, bench.md and bench.png. A missing folder is created, files of an earlier run are
            replaced.
        generate_kwargs: More options of ``generate``. Those for sampling, beams and the end of a text have no effect.
        compile: Compile the decode steps of FullDepth and the strategies. On a GPU, plain ``generate`` on its static
            cache, which transformers compiles, is measured too.
        run: Provenance for the record. None notes it now.

    Returns:
        The figures of plain generate, FullDepth and the strategies in each cell, with the raw times of each round.

    Raises:
        UserError: For bad cells or options, and for an oracle.
        RunError: If full depth makes other tokens than plain ``generate`` in 32 bits or more.
    """
    if not cells or not all(cell.batches for cell in cells):
        raise UserError("cells: expected at least one, with at least one batch in each.")
    check_bench(strategies, options, examples=sys.maxsize)
    kwargs = dict(fixed_length(generate_kwargs or {}))
    noted = {**kwargs, "compile": True} if compile else kwargs
    run = run or run_info(generation=generation(plain_model(model), noted).record())
    load_before, since = load_average(), time.monotonic()
    finished: list[BenchCell] = []
    in_dtype, dtype = model, None

    def result() -> BenchResult:
        return BenchResult(
            model=model_info(model),
            new_tokens=options.new_tokens,
            repeats=options.repeats,
            warmup_rounds=WARMUP_ROUNDS,
            environment=environment(load_before),
            cells=tuple(finished),
            planned_cells=len(cells),
            run=run,
        )

    try:
        for index, cell in enumerate(cells):
            if cell.dtype != dtype:
                in_dtype, dtype = in_dtype_of(cell, model), cell.dtype
            with part(index, len(cells), "cell", since):
                finished.append(_measured(in_dtype, cell, strategies, options, kwargs, compile))
            result().write(folder / FILE)
    finally:
        if finished:
            print_bench(result(), console())
            write_bench(result(), folder)
    return result()


def _measured(
    model: nn.Module,
    cell: Cell,
    strategies: Sequence[SkipStrategy],
    options: BenchOptions,
    generate_kwargs: Mapping[str, Any],
    compile: bool,
) -> BenchCell:
    """Measure one cell."""
    device = next(model.parameters()).device
    batches = [batch.to(device) for batch in cell.batches]
    given = {**generate_kwargs, "num_beams": cell.num_beams, "max_new_tokens": options.new_tokens}
    kwargs = generation(plain_model(model), given).options
    plain = PlainSide(model, batches, kwargs)
    full_depth, *others = [StrategySide(model, batches, kwargs, each, compile) for each in (FullDepth(), *strategies)]
    sides: dict[str, Any] = {PLAIN: plain, FULL_DEPTH: full_depth}
    if compile and device.type == "cuda":
        sides[PLAIN_COMPILED] = PlainCompiledSide(model, batches, kwargs)
    not_measured: list[NotMeasured] = []
    for number, side in enumerate(others):
        name = repr(side.strategy) if repr(side.strategy) not in sides else f"{side.strategy!r} ({number + 1})"
        sides[name] = side
        if options.removed_layers:
            schedule = side.schedule()
            if schedule is None:
                not_measured.append(NotMeasured(LAYERS_REMOVED + name, "it chooses its layers while it decodes"))
                continue
            whole = [layers for layers in schedule if not isinstance(layers, SubLayers)]
            if plain_model(model).config.is_encoder_decoder:
                not_measured.append(NotMeasured(LAYERS_REMOVED + name, "it is measured for decoder-only models"))
            elif len(whole) < len(schedule):
                not_measured.append(NotMeasured(LAYERS_REMOVED + name, "it runs attention and MLP apart"))
            else:
                sides[LAYERS_REMOVED + name] = LayersRemovedSide(model, batches, kwargs, whole)
    with torch.inference_mode():
        if options.assistant_early_exit is not None:
            name = f"{EARLY_EXIT}{options.assistant_early_exit}"
            early_exit = EarlyExitSide(model, batches, kwargs, options.assistant_early_exit)
            why_not = early_exit.why_not()
            if why_not is None:
                sides[name] = early_exit
            else:
                not_measured.append(NotMeasured(name, why_not))
        peaks = {name: PeakMemory(side, device) for name, side in sides.items()}
        total = (WARMUP_ROUNDS + options.repeats) * len(sides) * len(batches)
        # No refresh in the background: its thread would compete with what is measured.
        with Steps("Decoding", total, "batches", background=False) as steps:

            def rounds(number: int) -> list[list[list[Timing]]]:
                return interleave(list(peaks.values()), cases=len(batches), rounds=number, after_run=steps.advance)

            rounds(WARMUP_ROUNDS)
            other_tokens = _other_tokens(plain, full_depth)
            timings = dict(zip(sides, rounds(options.repeats), strict=True))
    for name in [name for name in sides if any(not sum(t.decode_passes for t in row) for row in timings[name])]:
        del sides[name]  # of early exit alone: every other way to decode takes T - 1 steps
        not_measured.append(NotMeasured(name, "its first verification made all tokens: give more new_tokens"))
    rows = len(batches[0].input_ids)
    return BenchCell(
        batch_size=rows,
        num_beams=cell.num_beams,
        dtype=weights_dtype(plain_model(model)),
        prompt_tokens=tuple(length for batch in batches for length in batch.lengths),
        sides=tuple(
            _figures(name, {} if side is plain else side.costs(), timings, rows, peaks[name].peak_mib)
            for name, side in sides.items()
        ),
        not_measured=tuple(not_measured),
        head_per_layers=1 / (ideal_speedup(model, [[]]) - 1),
        peak_process_mib=peak_process_mib(),
        other_tokens=other_tokens,
    )


def _figures(
    name: str,
    costs: Mapping[str, float | None],
    timings: Mapping[str, list[list[Timing]]],
    batch_size: int,
    peak_gpu_mib: float | None,
) -> BenchSide:
    """Return the figures of one side, given the timings of all."""
    rounds = timings[name]
    step_s, plain_s, full_depth_s = (_step_s(timings[each]) for each in (name, PLAIN, FULL_DEPTH))
    removed = timings.get(LAYERS_REMOVED + name)
    speed_up, ideal = ratio_spread(full_depth_s, step_s), costs.get("ideal_speed_up")
    return BenchSide(
        name=name,
        average_layers=costs.get("average_layers"),
        decode_step_ms=spread([1e3 * seconds for seconds in step_s]),
        tokens_per_second=spread([batch_size / seconds for seconds in step_s]),
        speed_up=speed_up,
        ideal_speed_up=ideal,
        reached=speed_up.median / ideal if ideal else None,
        time_over_plain=ratio_spread(step_s, plain_s),
        prompt_ms=spread([1e3 * sum(t.prompt_s for t in row) / len(row) for row in rounds]),
        flops_per_token=costs.get("flops_per_token"),
        cache_mib=costs.get("cache_mib"),
        prompt_s=tuple(tuple(timing.prompt_s for timing in row) for row in rounds),
        decode_s=tuple(tuple(timing.decode_s for timing in row) for row in rounds),
        decode_passes=tuple(tuple(timing.decode_passes for timing in row) for row in rounds),
        over_removed=None if removed is None else ratio_spread(_step_s(removed), step_s),
        peak_gpu_mib=peak_gpu_mib,
    )


def _step_s(rounds: list[list[Timing]]) -> list[float]:
    """Seconds per decode step in each round."""
    return [sum(timing.decode_s for timing in row) / sum(timing.decode_passes for timing in row) for row in rounds]


def _other_tokens(plain: PlainSide, full_depth: StrategySide) -> int:
    """Count the batches on which full depth decodes other tokens than plain ``generate``.

    In reduced precision two orders of the same sums may give other tokens. In 32 bits or more, it is an error.
    """
    different = [
        case
        for case, sequences in plain.sequences.items()
        if not torch.equal(full_depth.outputs[case].sequences, sequences)
    ]
    if different and plain.dtype.itemsize >= 4:
        case = different[0]
        raise RunError(
            f"FullDepth and plain generate made different tokens from prompt {case}: "
            f"{full_depth.outputs[case].sequences.tolist()} against {plain.sequences[case].tolist()}. Their times "
            "cannot be compared; please report this."
        )
    return len(different)
