"""BenchResult: the speed of decode steps, strategies timed in alternation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from hsdlab.records import version_1
from hsdlab.records.document import Document
from hsdlab.records.model_info import ModelInfo
from hsdlab.records.provenance import RunInfo


@dataclass(frozen=True)
class Spread:
    """Some values over the rounds.

    Attributes:
        median: Of the values.
        low: Their lower quartile.
        high: Their upper quartile.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchEnvironment:
    """What a time depends on besides the machine.

    Attributes:
        threads: Of torch, within an operation.
        interop_threads: Of torch, between operations.
        variables: Environment variables that set threads.
        load_average_before: Mean number of running processes over 1, 5 and 15 minutes; None where not known.
        load_average_after: The same at the end.
    """

    threads: int
    interop_threads: int
    variables: Mapping[str, str]
    load_average_before: tuple[float, ...] | None
    load_average_after: tuple[float, ...] | None


@dataclass(frozen=True)
class BenchSide:
    """The figures of plain `generate`, of full depth or of a strategy. A figure that does not apply is None.

    Attributes:
        name: "plain generate", "FullDepth" or the strategy.
        average_layers: Layers per decode step.
        decode_step_ms: Milliseconds per decode step.
        tokens_per_second: Decode steps per second.
        speed_up: FullDepth's time over this one's.
        ideal_speed_up: Weights read at full depth over weights read under the schedule.
        reached: The median speed-up over the ideal one.
        time_over_plain: This one's time over plain `generate`'s.
        prompt_ms: Milliseconds per prefill.
        flops_per_token: FLOPs per decode step.
        cache_mib: The largest KV cache, MiB.
        prompt_s: Seconds of the prefill, [rounds][prompts].
        decode_s: Seconds of all decode steps, [rounds][prompts].
        decode_passes: Decode steps, [rounds][prompts].
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


@dataclass(frozen=True)
class BenchResult(Document):
    """What a bench measured: batch 1, greedy, prefill apart; bench.json.

    Attributes:
        model: Which model.
        prompt_tokens: Length of each prompt.
        new_tokens: Tokens that every side decodes from each prompt.
        repeats: Measured rounds.
        warmup_rounds: Rounds before them.
        environment: Threads and load of the machine.
        sides: Plain `generate`, FullDepth and the strategies.
        run: What it was made with; None where it was not noted.
    """

    kind: ClassVar[str] = "bench"
    oldest: ClassVar[int] = 1
    upgrade = staticmethod(version_1.bench)

    model: ModelInfo
    prompt_tokens: tuple[int, ...]
    new_tokens: int
    repeats: int
    warmup_rounds: int
    environment: BenchEnvironment
    sides: tuple[BenchSide, ...]
    run: RunInfo | None = None
