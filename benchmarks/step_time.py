"""Print the time of a decode step over that of plain ``model.generate``, for docs/performance.md.

    python -m benchmarks.step_time                      # every case in float32 and bfloat16; 10 minutes on 2 cores
    python -m benchmarks.step_time float32 "batch 1"    # one dtype; the cases whose name contains the text
    OMP_NUM_THREADS=1 python -m benchmarks.step_time cpu Prefill    # prompt schedules, in CPU seconds of one thread

A prefill ends with the first call of the logits processor. CPU seconds change little with what else the machine does.

A step is the median gap between the calls of a logits processor, which is the same on all sides. The sides of a case
take turns in short rounds. A ratio is taken within its round, since a shared machine drifts.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from hsdlab import HSD, FullDepth, SkipDecode, SkipStrategy, StaticDepth, load_model
from hsdlab.decoding import StepState
from hsdlab.decoding.cost import ideal_speedup
from hsdlab.runs.timing import ratio_spread

NEW_TOKENS, ROUNDS = 24, 5


class Clock(LogitsProcessor):
    """Reads the clock in each step and changes nothing."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.start_s = now_s()
        self.readings_s: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Note the time; the scores [rows, vocabulary] stay as they are."""
        self.readings_s.append(self._now_s())
        return scores

    def prefill_s(self) -> float:
        """Return the time from the making of this object to the first call."""
        return self.readings_s[0] - self.start_s

    def step_s(self) -> float:
        """Return the median gap; the first is left out, which ends the prompt pass."""
        return median(b - a for a, b in zip(self.readings_s[1:], self.readings_s[2:], strict=False))


class AtOnce(StoppingCriteria):
    """Ends every text after its first token: what follows a prefill is not measured."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Answer yes for each row, BoolTensor [rows]."""
        return torch.ones(len(input_ids), dtype=torch.bool)


class PlannedRows(SkipStrategy):
    """The same layers for all rows in every step, but planned row by row: what per-row decisions cost."""

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def plan(self, state: StepState) -> Tensor:
        """Run the uppermost layers, and in even rows the lowest instead of the one above it."""
        chosen = torch.zeros(state.rows, state.num_layers, dtype=torch.bool)
        chosen[:, state.num_layers - self.layers + 1 :] = True
        chosen[::2, 0] = True
        chosen[1::2, 1] = True
        return chosen


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        name: What the line is called.
        rows: Prompts in the batch.
        prompt_tokens: Length of each.
        strategy: Ours.
        against: What it is measured against: a strategy, or None for plain ``model.generate``.
        options: More options of ``generate``.
        ideal: Also print the speed-up over the ideal one.
        prefill: Measure the prefill instead of a step.
    """

    name: str
    rows: int
    prompt_tokens: int
    strategy: SkipStrategy
    against: SkipStrategy | None
    options: dict[str, Any]
    ideal: bool = False
    prefill: bool = False


def prompt_case(name: str, strategy: SkipStrategy, against: SkipStrategy) -> Case:
    """Make a line for a prompt schedule: the prefill of 1,000 tokens over that of the same strategy without one."""
    at_once = {"stopping_criteria": StoppingCriteriaList([AtOnce()])}
    return Case(f"Prefill, {name}", 1, 1000, strategy, against, at_once, prefill=True)


CASES = (
    Case("FullDepth, batch 1", 1, 100, FullDepth(), None, {}),
    Case("FullDepth, batch 8", 8, 100, FullDepth(), None, {}),
    Case("FullDepth, beam 4", 1, 100, FullDepth(), None, {"num_beams": 4}),
    Case("FullDepth, beam 4, long prompt", 1, 1000, FullDepth(), None, {"num_beams": 4}),
    Case("HSD(1, 0, 15), batch 1", 1, 100, HSD(1, 0, 15), None, {}, ideal=True),
    Case("SkipDecode(10, 20), batch 1", 1, 100, SkipDecode(10, 20), None, {}, ideal=True),
    Case("Rows over schedule, batch 8", 8, 100, PlannedRows(16), StaticDepth(16), {}),
    prompt_case("HSD(2, 0, 8), prompt 0 to 14", HSD(2, 0, 8, prompt_min_exit=0, prompt_max_exit=14), HSD(2, 0, 8)),
    prompt_case("HSD(1, 0, 8), prompt 0", HSD(1, 0, 8, prompt_min_exit=0, prompt_max_exit=0), HSD(1, 0, 8)),
    prompt_case(
        "SkipDecode(10, 20), prompt 0 to 28",
        SkipDecode(10, 20, prompt_min_exit=0, prompt_max_exit=28),
        SkipDecode(10, 20),
    ),
)


def side(model: PreTrainedModel, ids: Tensor, strategy: SkipStrategy | None, clock: Clock, options: dict) -> Clock:
    """Decode once; return the clock."""
    with torch.inference_mode(), nullcontext() if strategy is None else strategy.applied_to(model):
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            eos_token_id=None,
            do_sample=False,
            logits_processor=LogitsProcessorList([clock]),
            **options,
        )
    return clock


def measure(model: PreTrainedModel, case: Case, rounds: int, now_s: Callable[[], float]) -> None:
    """Print a line: both medians, their ratio with quartiles and, on request, what share of the ideal is reached."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (case.rows, case.prompt_tokens), generator=generator)
    read = Clock.prefill_s if case.prefill else Clock.step_s
    sides: Sequence[Callable[[], Clock]] = [
        lambda: side(model, ids, case.strategy, Clock(now_s), case.options),
        lambda: side(model, ids, case.against, Clock(now_s), case.options),
    ]
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 1):  # the first warms up
        for index in (0, 1) if turn % 2 else (1, 0):
            seconds[index].append(read(sides[index]()))
    ours, theirs = seconds[0][1:], seconds[1][1:]
    ratio = ratio_spread(ours, theirs)
    line = (
        f"| {case.name} | {1e3 * median(theirs):.1f} | {1e3 * median(ours):.1f} | "
        f"{ratio.median:.2f} [{ratio.low:.2f}…{ratio.high:.2f}] |"
    )
    if case.ideal:
        schedule = case.strategy.scheduled_layers(model.config.num_hidden_layers, NEW_TOKENS)
        reached = ratio_spread(theirs, [ideal_speedup(model, schedule or ()) * each for each in ours])
        line += f" {reached.median:.2f} [{reached.low:.2f}…{reached.high:.2f}] |"
    else:
        line += " – |"
    print(line, flush=True)


def main() -> None:
    """Print a table for each dtype."""
    asked = sys.argv[1:]
    dtypes = [name for name in asked if name in ("float32", "bfloat16")] or ["float32", "bfloat16"]
    now_s = time.process_time if "cpu" in asked else time.perf_counter
    names = [name for name in asked if name not in (*dtypes, "cpu")]
    for dtype in dtypes:
        model, _ = load_model("embedded:smollm2-135m", device="cpu", dtype=dtype)
        print(f"{dtype}, {torch.get_num_threads()} threads, {ROUNDS} rounds of {NEW_TOKENS} tokens\n")
        print("| Case | Other side, ms | hsdlab, ms | hsdlab ÷ other side | Speed-up ÷ ideal |")
        print("| --- | ---: | ---: | ---: | ---: |", flush=True)
        for case in CASES:
            if not names or any(name in case.name for name in names):
                measure(model, case, ROUNDS, now_s)
        print()


if __name__ == "__main__":
    main()
