"""Three small results whose figures, intervals and shares are known by hand.

With two examples a and b a resampled corpus is aa, ab or bb, with probability 1/4, 1/2, 1/4: the 95 %
interval runs from the smallest to the largest of the three figures.
"""

import math
from dataclasses import replace

import pytest

from hsdlab.reporting import StrategyResult


def example(name, rouge1, correct, tokens):
    """One record of a prediction file: four unigrams against four, of which `correct` match."""
    return {
        "id": name,
        "prediction": "a b c d",
        "references": ["a b c e"],
        "new_tokens": tokens,
        "average_layers": 2.0,
        "scores": {"rouge1": rouge1},
        "bleu_statistics": [4, 4, correct, 0, 0, 0, 4, 3, 2, 1],
    }


@pytest.fixture(scope="session")  # plain data: tests change copies
def full_depth():
    """rouge1 .8 and .6; BLEU-1 4/4 and 2/4; 10 ms a step."""
    return StrategyResult(
        name="FullDepth()",
        strategy={"class_path": "hsdlab.strategies.FullDepth", "init_args": {}},
        num_layers=4,
        scores={"rouge1": 0.7, "bleu1": 0.75},
        efficiency={
            "average_layers": 4.0,
            "compute_layers": 4.0,
            "decode_step_ms": 10.0,
            "tokens_per_second": 100.0,
            "prompt_ms": 20.0,
            "flops_per_token": 2.5e9,
            "cache_peak_mib": 1.5,
        },
        examples=[example("a", 0.8, 4, 4), example("b", 0.6, 2, 4)],
    )


@pytest.fixture(scope="session")
def hsd():
    """rouge1 .6 and .3; BLEU-1 2/4 and 1/4; 8 ms a step; its examples in another order."""
    return StrategyResult(
        name="HSD(num_skipped=1, min_exit=0, max_exit=2)",
        strategy={"class_path": "hsdlab.strategies.HSD", "init_args": {"num_skipped": 1}},
        num_layers=4,
        scores={"rouge1": 0.45, "bleu1": 0.375},
        efficiency={
            "average_layers": 2.5,
            "compute_layers": 2.6,
            "decode_step_ms": 8.0,
            "tokens_per_second": 125.0,
            "prompt_ms": 20.5,
            "flops_per_token": 1.75e9,
            "cache_peak_mib": 1.25,
        },
        examples=[example("b", 0.3, 1, 2), example("a", 0.6, 2, 6)],
    )


@pytest.fixture(scope="session")
def calm():
    """Saves a layer and loses time; no BLEU, most costs not measured."""
    return StrategyResult(
        name="CALM(threshold=0.9, measure='softmax')",
        strategy={
            "class_path": "hsdlab.strategies.CALM",
            "init_args": {"threshold": 0.9, "measure": "softmax"},
        },
        num_layers=4,
        scores={"rouge1": 0.7},
        efficiency={"average_layers": 3.0, "decode_step_ms": 12.5, "prompt_ms": math.nan},
        examples=[example("a", 0.8, 4, 4), example("b", 0.6, 2, 4)],
    )


@pytest.fixture(scope="session")
def recorded(full_depth, hsd):
    """Both with source, tokens and layers: three decode steps of a; of b three at full depth, one under HSD."""
    layers = {
        "FullDepth": {"a": ["0-3"] * 3, "b": ["0-3"] * 3},
        "HSD": {"a": ["0,2-3", "0,3", "0,3"], "b": ["0,2,3"]},
    }
    results = []
    for result in (full_depth, hsd):
        examples = [
            each
            | {"source": f"What is {each['id']}|{each['id']}?", "layers": layers[result.class_name][each["id"]]}
            | {"tokens": ["The", " *one*", "\n", " $2$"][: 1 + len(layers[result.class_name][each["id"]])]}
            for each in result.examples
        ]
        results.append(replace(result, examples=examples))
    return results
