"""Efficiency: each number by hand, micro-averages, and what happens where nothing was measured."""

import math
import pickle

import pytest
import torch

from hsdlab.metrics import Efficiency

FIRST = {
    "depth_sum": 60,
    "live_steps": 4,
    "compute_depth_sum": 140,
    "compute_steps": 8,
    "num_layers": 30,
    "decode_seconds": 0.2,
    "decode_passes": 4,
    "prompt_seconds": 0.1,
    "prompts": 1,
    "flops": 1.2e9,
    "cache_bytes": 3 * 2**20,
}
SECOND = {
    "depth_sum": 240,
    "live_steps": 8,
    "compute_depth_sum": 400,
    "compute_steps": 16,
    "num_layers": 30,
    "decode_seconds": 1.0,
    "decode_passes": 2,
    "prompt_seconds": 0.5,
    "prompts": 2,
    "flops": 6e9,
    "cache_bytes": 2**20,
}
BOTH = {
    "average_layers": 300 / 12,
    "share_skipped": 1 - 25 / 30,
    "compute_layers": 540 / 24,
    "decode_step_ms": 1200 / 6,
    "tokens_per_second": 12 / 1.2,
    "prompt_ms": 600 / 3,
    "flops_per_token": 7.2e9 / 12,
    "cache_peak_mib": 3.0,
}


def numbers(metric: Efficiency) -> dict[str, float]:
    values = metric.compute()
    assert all(value.ndim == 0 and value.dtype == torch.float64 for value in values.values())
    return {key: value.item() for key, value in values.items()}


@pytest.mark.parametrize("updates", [(FIRST, SECOND), (SECOND, FIRST)])
def test_two_updates_give_micro_averages(updates):
    metric = Efficiency()
    for update in updates:
        metric.update(**update)
    assert numbers(metric) == pytest.approx(BOTH, rel=1e-12)


def test_large_counts_stay_exact():
    metric = Efficiency()
    for _ in range(3):
        metric.update(**{**FIRST, "depth_sum": 2**40 + 1, "live_steps": 1})
    assert numbers(metric)["average_layers"] == 2**40 + 1


def test_no_decode_step_is_nan_and_the_prompt_still_counts():
    metric = Efficiency()
    nothing = dict.fromkeys(FIRST, 0)
    metric.update(**{**nothing, "num_layers": 30, "prompt_seconds": 0.1, "prompts": 1, "cache_bytes": 2**19})
    values = numbers(metric)
    assert values.pop("prompt_ms") == pytest.approx(100)
    assert values.pop("cache_peak_mib") == 0.5
    assert all(math.isnan(value) for value in values.values())


def test_nothing_seen_is_nan():
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        values = numbers(Efficiency())
    assert list(values) == list(BOTH)
    assert all(math.isnan(value) for value in values.values())


@pytest.mark.parametrize(
    ("num_layers", "message"), [(24, "must be 30 as before, got 24"), (0, "must be 30 as before, got 0")]
)
def test_another_number_of_layers_is_refused(num_layers, message):
    metric = Efficiency()
    metric.update(**FIRST)
    with pytest.raises(ValueError, match=message):
        metric.update(**{**SECOND, "num_layers": num_layers})
    metric.reset()
    metric.update(**{**FIRST, "num_layers": 20})
    assert numbers(metric)["share_skipped"] == 0.25


def test_a_model_has_layers():
    with pytest.raises(ValueError, match="must be positive, got 0"):
        Efficiency().update(**{**FIRST, "num_layers": 0})


def test_copies_reset_and_an_empty_state_dict():
    metric = Efficiency()
    metric.update(**FIRST)
    for other in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        other.update(**SECOND)
        assert numbers(other) == pytest.approx(BOTH, rel=1e-12)
        assert numbers(metric)["average_layers"] == 15
    assert metric.state_dict() == {}
    assert list(metric.parameters()) == []
    metric.reset()
    metric.update(**FIRST)
    assert numbers(metric)["average_layers"] == 15


def test_forward_gives_the_batch_and_keeps_the_whole():
    metric = Efficiency()
    assert metric(**FIRST)["cache_peak_mib"] == 3
    assert metric(**SECOND)["cache_peak_mib"] == 1
    assert numbers(metric) == pytest.approx(BOTH, rel=1e-12)


def test_states_are_replaced_and_keep_their_dtype():
    metric = Efficiency()
    before = {name: getattr(metric, name) for name in metric._defaults}
    metric.to(torch.bfloat16).update(**FIRST)
    metric.to(torch.bfloat16).update(**SECOND)
    assert not any(state.any() for state in before.values())
    assert numbers(metric) == pytest.approx(BOTH, rel=1e-12)
