"""Efficiency: each number by hand, micro-averages, and what happens where nothing was measured."""

import math
import pickle
from dataclasses import replace

import pytest
import torch

from hsdlab.costs import Cost
from hsdlab.errors import UserError
from hsdlab.metrics import Efficiency

FIRST = Cost(
    executed_layers=60,
    decode_steps=4,
    computed_layers=140,
    computed_steps=8,
    num_layers=30,
    decode_s=0.2,
    decode_passes=4,
    prompt_s=0.1,
    prompt_passes=1,
    flops=1.2e9,
    peak_cache_bytes=3 * 2**20,
    bytes_read=1.2e6,
    late_key_values=6,
    intermediate_predictions=10,
    wall_s=0.3,
)
SECOND = Cost(
    executed_layers=240,
    decode_steps=8,
    computed_layers=400,
    computed_steps=16,
    num_layers=30,
    decode_s=1.0,
    decode_passes=2,
    prompt_s=0.5,
    prompt_passes=2,
    flops=6e9,
    peak_cache_bytes=2**20,
    bytes_read=2.4e6,
    late_key_values=18,
    intermediate_predictions=50,
    wall_s=1.5,
)
BOTH = {
    "average_layers": 300 / 12,
    "share_skipped": 1 - 25 / 30,
    "compute_layers": 540 / 24,
    "decode_step_ms": 1200 / 6,
    "tokens_per_second": 12 / 1.2,
    "prompt_ms": 600 / 3,
    "flops_per_token": 7.2e9 / 12,
    "bytes_per_token": 3.6e6 / 12,
    "late_key_values_per_token": 24 / 12,
    "intermediate_predictions_per_token": 60 / 12,
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
        metric.update(update)
    assert numbers(metric) == pytest.approx(BOTH, rel=1e-12)


def test_large_counts_stay_exact():
    metric = Efficiency()
    for _ in range(3):
        metric.update(replace(FIRST, executed_layers=2**40 + 1, decode_steps=1))
    assert numbers(metric)["average_layers"] == 2**40 + 1


def test_no_decode_step_is_nan_and_the_prompt_still_counts():
    metric = Efficiency()
    metric.update(Cost(num_layers=30, prompt_s=0.1, prompt_passes=1, peak_cache_bytes=2**19))
    values = numbers(metric)
    assert values.pop("prompt_ms") == pytest.approx(100)
    assert values.pop("cache_peak_mib") == 0.5
    assert all(math.isnan(value) for value in values.values())


def test_nothing_seen_is_nan():
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        values = numbers(Efficiency())
    assert list(values) == list(BOTH)
    assert all(math.isnan(value) for value in values.values())


def test_another_number_of_layers_is_refused():
    metric = Efficiency()
    metric.update(FIRST)
    with pytest.raises(UserError, match="models with 30 and with 24 layers; expected one model"):
        metric.update(replace(SECOND, num_layers=24))
    assert numbers(metric)["average_layers"] == 15  # nothing of it was added
    metric.reset()
    metric.update(replace(FIRST, num_layers=20))
    assert numbers(metric)["share_skipped"] == 0.25


def test_its_cost_is_the_sum_of_the_costs():
    metric = Efficiency()
    metric.update(FIRST)
    metric.update(SECOND)
    assert metric.cost() == FIRST + SECOND
    assert all(type(getattr(metric.cost(), name)) is type(getattr(FIRST, name)) for name in vars(FIRST))


def test_copies_reset_and_an_empty_state_dict():
    metric = Efficiency()
    metric.update(FIRST)
    for other in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        other.update(SECOND)
        assert numbers(other) == pytest.approx(BOTH, rel=1e-12)
        assert numbers(metric)["average_layers"] == 15
    assert metric.state_dict() == {}
    assert list(metric.parameters()) == []
    metric.reset()
    metric.update(FIRST)
    assert numbers(metric)["average_layers"] == 15


def test_forward_gives_the_batch_and_keeps_the_whole():
    metric = Efficiency()
    assert metric(FIRST)["cache_peak_mib"] == 3
    assert metric(SECOND)["cache_peak_mib"] == 1
    assert numbers(metric) == pytest.approx(BOTH, rel=1e-12)


def test_states_are_replaced_and_keep_their_dtype():
    metric = Efficiency()
    before = {name: getattr(metric, name) for name in metric._defaults}
    metric.to(torch.bfloat16).update(FIRST)
    metric.to(torch.bfloat16).update(SECOND)
    assert not any(state.any() for state in before.values())
    assert numbers(metric) == pytest.approx(BOTH, rel=1e-12)


def test_half_layers_stay_halves_and_whole_layers_whole_numbers():
    metric = Efficiency()
    metric.update(replace(FIRST, executed_layers=60.5, computed_layers=140.5))
    assert (metric.cost().executed_layers, metric.cost().computed_layers) == (60.5, 140.5)
    metric.update(replace(FIRST, executed_layers=60.5))
    assert isinstance(metric.cost().executed_layers, int)
    assert metric.cost().executed_layers == 121
