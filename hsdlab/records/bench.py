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
    """The figures of plain `generate`, of full depth or of one strategy. A figure that does not apply is None.

    Attributes:
        name: "plain generate", "FullDepth" or the strategy.
        average_layers: Executed layers per decode step.
        decode_step_ms: Milliseconds per decode step.
        tokens_per_second: Decode steps per second.
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
        decode_passes: Number of decode steps, [rounds][prompts].
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
    """What `bench` measured at batch size 1, greedily, with prefill and decode steps timed separately; bench.json.

    Attributes:
        model: The model that was timed.
        prompt_tokens: Length of each prompt, tokens.
        new_tokens: New tokens that are decoded from each prompt, by every strategy the same number.
        repeats: Measured rounds.
        warmup_rounds: Rounds before them that are not measured.
        environment: Threads and load of the machine.
        sides: Plain `generate`, FullDepth and the strategies, in the order of the tables.
        run: Versions, commit and machine; None where they were not noted.
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
