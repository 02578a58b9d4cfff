"""BenchResult: the speed of decode steps in each cell of a matrix, strategies timed in alternation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from hsdlab.records import version_1, version_2
from hsdlab.records.document import Document, Upgrade
from hsdlab.records.model_info import ModelInfo
from hsdlab.records.provenance import RunInfo

PLAIN, FULL_DEPTH = "plain generate", "FullDepth"
"""The names of the two sides that every cell has."""
PLAIN_COMPILED = "plain generate, static cache, compiled"
"""The name of the side that a compiled bench has besides on a GPU."""
LAYERS_REMOVED = "layers removed: "
"""Comes before the name of a strategy, where a side is plain `generate` with only that strategy's layers."""
EARLY_EXIT = "assistant_early_exit="
"""Comes before the exit layer, where a side is transformers' self-speculation."""


@dataclass(frozen=True)
class Spread:
    """The distribution of a figure over the measured rounds, in the unit of the figure.

    Attributes:
        median: Half of the rounds are below it.
        low: Lower quartile; a quarter of the rounds is below it.
        high: Upper quartile; a quarter of the rounds is above it.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchEnvironment:
    """What a measured time depends on besides the machine.

    Attributes:
        threads: Threads of torch within one operation.
        interop_threads: Threads of torch between operations.
        variables: The environment variables that set numbers of threads, such as OMP_NUM_THREADS; absent if not set.
        load_average_before: Mean number of running processes over the last 1, 5 and 15 minutes; None where the system
            does not say.
        load_average_after: The same at the end of the measurement.
    """

    threads: int
    interop_threads: int
    variables: Mapping[str, str]
    load_average_before: tuple[float, ...] | None
    load_average_after: tuple[float, ...] | None


@dataclass(frozen=True)
class BenchSide:
    """The figures of one way to decode in one cell. A figure that does not apply is None.

    Attributes:
        name: "plain generate", or the same with ", static cache, compiled"; "FullDepth", the strategy, "layers removed:
            " and the strategy, or "assistant_early_exit=" and the exit layer.
        average_layers: Executed layers per decode step.
        decode_step_ms: Milliseconds per decode step of the whole batch; under assistant_early_exit, per token.
        tokens_per_second: New tokens of all sequences of the batch per second of decode steps.
        speed_up: FullDepth's time divided by this one's, round by round.
        ideal_speed_up: Bytes of weights read at full depth divided by those read under the schedule: an upper bound
            where reading the weights takes all the time.
        reached: The median speed-up as a share of the ideal one.
        time_over_plain: This one's time divided by plain `generate`'s, round by round.
        prompt_ms: Milliseconds per prefill.
        flops_per_token: FLOPs per decode step.
        cache_mib: The largest KV cache, MiB.
        prompt_s: Seconds of the prefill, [rounds][prompts].
        decode_s: Seconds of all decode steps, [rounds][prompts].
        decode_passes: Number of decode steps, [rounds][prompts]; under assistant_early_exit, of tokens after those of
            the first verification.
        over_removed: The time of the same layers physically removed divided by this one's, round by round.
        peak_gpu_mib: The most memory that tensors took on the GPU, weights included, MiB; None on a CPU.
    """

    name: str
    average_layers: float | None
    decode_step_ms: Spread
    tokens_per_second: Spread
    speed_up: Spread
    ideal_speed_up: float | None
    reached: float | None
    time_over_plain: Spread
    prompt_ms: Spread
    flops_per_token: float | None
    cache_mib: float | None
    prompt_s: tuple[tuple[float, ...], ...]
    decode_s: tuple[tuple[float, ...], ...]
    decode_passes: tuple[tuple[int, ...], ...]
    over_removed: Spread | None = None
    peak_gpu_mib: float | None = None


@dataclass(frozen=True)
class NotMeasured:
    """A way to decode that a cell has no figures of.

    Attributes:
        name: As the side would have been named.
        reason: Why it was not measured.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class BenchCell:
    """One cell of the matrix: all ways to decode under the same conditions, in the same rounds.

    Attributes:
        batch_size: Sequences per batch.
        num_beams: Beams of each sequence; 1 decodes greedily.
        dtype: Of the weights, such as "float32"; of quantised ones also how, such as "int8, float32".
        prompt_tokens: Length of each prompt, tokens; those of the first batch come first.
        sides: Plain `generate`, FullDepth, the strategies, the same layers removed, and assistant_early_exit.
        not_measured: What was asked for and cannot be measured here.
        head_per_layers: Bytes of the head and the final norm divided by those of all layers; None where not noted.
        peak_process_mib: The most memory that the process had taken at the end of the cell, MiB; None where not noted.
        other_tokens: Batches on which FullDepth made other tokens than plain `generate`, by rounding (dtypes below
            32 bits only).
    """

    batch_size: int
    num_beams: int
    dtype: str
    prompt_tokens: tuple[int, ...]
    sides: tuple[BenchSide, ...]
    not_measured: tuple[NotMeasured, ...] = ()
    head_per_layers: float | None = None
    peak_process_mib: float | None = None
    other_tokens: int = 0


@dataclass(frozen=True)
class BenchResult(Document):
    """What `bench` measured, cell by cell, with prefill and decode steps timed separately; bench.json.

    Attributes:
        model: The model that was timed, in the dtype in which it was loaded.
        new_tokens: New tokens that are decoded from each prompt, in every way the same number.
        repeats: Measured rounds.
        warmup_rounds: Rounds before them that are not measured.
        environment: Threads and load of the machine.
        cells: The cells that were measured, in their order.
        planned_cells: Number of cells that were asked for; more than `cells` after a run that was cut short.
        run: Versions, commit and machine; None where they were not noted.
    """

    kind: ClassVar[str] = "bench"
    version: ClassVar[int] = 3
    upgrades: ClassVar[Mapping[int, Upgrade]] = {1: version_1.bench, 2: version_2.bench}

    model: ModelInfo
    new_tokens: int
    repeats: int
    warmup_rounds: int
    environment: BenchEnvironment
    cells: tuple[BenchCell, ...]
    planned_cells: int
    run: RunInfo | None = None
