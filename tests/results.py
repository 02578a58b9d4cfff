"""Small records whose figures, intervals and shares are known by hand; a fixture of the same name gives each result.

With two examples a and b a resampled corpus is aa, ab or bb, with probability 1/4, 1/2, 1/4: the 95 % interval runs
from the smallest to the largest of the three figures.
"""

from dataclasses import replace
from typing import Any

from hsdlab.costs import Cost
from hsdlab.records.comparison import Comparison, compare_results
from hsdlab.records.example import ExampleRecord
from hsdlab.records.provenance import Machine, RunInfo
from hsdlab.records.strategy import StrategyConfig
from hsdlab.records.strategy_result import StrategyResult

STEPS = 100
"""Decode steps, and passes, of each result."""

RUN = RunInfo(
    date_utc="2026-01-02T03:04:05+00:00",
    command=("evaluate.py", "compare"),
    seed=7,
    config={},
    versions={"hsdlab": "0.2.0"},
    git=None,
    machine=Machine("A CPU", 2, 1, 8.0, (), "Linux"),
)


def example(name: str, rouge1: float, correct: int, tokens: int) -> ExampleRecord:
    """Return the record of four unigrams against four, of which `correct` match."""
    return ExampleRecord(
        id=name,
        prediction="a b c d",
        references=("a b c e",),
        new_tokens=tokens,
        average_layers=2.0,
        scores={"rouge1": rouge1},
        bleu_statistics=(4, 4, correct, 0, 0, 0, 4, 3, 2, 1),
    )


def compared(*results: StrategyResult, **config: Any) -> Comparison:
    """Return the comparison of some results, made by a run of some configuration."""
    return compare_results(results, replace(RUN, config=config))


def with_cost(result: StrategyResult, **counts: Any) -> StrategyResult:
    """Return a result with other counts in its cost."""
    return replace(result, cost=replace(result.cost, **counts))


def at_step_ms(result: StrategyResult, milliseconds: float) -> StrategyResult:
    """Return a result with another time of a decode step."""
    return with_cost(result, decode_s=milliseconds * STEPS / 1000)


def full_depth() -> StrategyResult:
    """rouge1 .8 and .6; BLEU-1 4/4 and 2/4; 4 layers, 10 ms a step."""
    return StrategyResult(
        name="FullDepth()",
        strategy=StrategyConfig("hsdlab.strategies.FullDepth"),
        num_layers=4,
        scores={"rouge1": 0.7, "bleu1": 0.75},
        cost=Cost(
            num_layers=4,
            prompt_passes=1,
            decode_passes=STEPS,
            decode_steps=STEPS,
            executed_layers=4 * STEPS,
            computed_steps=STEPS,
            computed_layers=4 * STEPS,
            flops=2.5e9 * STEPS,
            bytes_read=3e6 * STEPS,
            prompt_s=0.02,
            decode_s=1.0,
            wall_s=1.02,
            peak_cache_bytes=3 * 2**19,
        ),
        examples=(example("a", 0.8, 4, 4), example("b", 0.6, 2, 4)),
    )


def hsd() -> StrategyResult:
    """rouge1 .6 and .3; BLEU-1 2/4 and 1/4; 2.5 layers, 2.6 computed, 8 ms a step; its examples in another order."""
    return StrategyResult(
        name="HSD(num_skipped=1, min_exit=0, max_exit=2)",
        strategy=StrategyConfig("hsdlab.strategies.HSD", {"num_skipped": 1}),
        num_layers=4,
        scores={"rouge1": 0.45, "bleu1": 0.375},
        cost=Cost(
            num_layers=4,
            prompt_passes=1,
            decode_passes=STEPS,
            decode_steps=STEPS,
            executed_layers=250,
            computed_steps=STEPS,
            computed_layers=260,
            flops=1.75e9 * STEPS,
            bytes_read=2e6 * STEPS,
            prompt_s=0.0205,
            decode_s=0.8,
            wall_s=0.8205,
            peak_cache_bytes=5 * 2**18,
        ),
        examples=(example("b", 0.3, 1, 2), example("a", 0.6, 2, 6)),
    )


def calm() -> StrategyResult:
    """3 of 4 layers, 12.5 ms a step: saves a layer and loses time; no BLEU, beams and prompt not measured."""
    return StrategyResult(
        name="CALM(threshold=0.9, measure='softmax')",
        strategy=StrategyConfig("hsdlab.strategies.CALM", {"threshold": 0.9, "measure": "softmax"}),
        num_layers=4,
        scores={"rouge1": 0.7},
        cost=Cost(
            num_layers=4,
            decode_passes=STEPS,
            decode_steps=STEPS,
            executed_layers=300,
            intermediate_predictions=250,
            decode_s=1.25,
        ),
        examples=(example("a", 0.8, 4, 4), example("b", 0.6, 2, 4)),
    )


def recorded() -> tuple[StrategyResult, StrategyResult]:
    """Full depth and HSD with source, tokens and layers: three steps of a; of b three at full depth, one under HSD."""
    layers = {
        "FullDepth": {"a": ("0-3",) * 3, "b": ("0-3",) * 3},
        "HSD": {"a": ("0,2-3", "0,3", "0,3"), "b": ("0,2,3",)},
    }

    def of(result: StrategyResult) -> StrategyResult:
        ran = layers[result.class_name]
        examples = tuple(
            replace(
                each,
                source=f"What is {each.id}|{each.id}?",
                layers=ran[each.id],
                tokens=("The", " *one*", "\n", " $2$")[: 1 + len(ran[each.id])],
                decode_steps=len(ran[each.id]),
            )
            for each in result.examples
        )
        return replace(result, examples=examples)

    return of(full_depth()), of(hsd())


def replace_examples(result: StrategyResult, **values: Any) -> StrategyResult:
    """Return a result with other values in each of its examples."""
    return replace(result, examples=tuple(replace(each, **values) for each in result.examples))
