"""The ledger: it adds up like counts do, its figures are those by hand, each layer counts with its own weights."""

import copy
import math
import re
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsdlab import FullDepth, SkipDecode, generate
from hsdlab.costs import MAXIMA, Cost
from hsdlab.decoding.cost import decode_bytes, decode_cost, decode_flops
from hsdlab.errors import UserError
from hsdlab.metrics import Efficiency
from hsdlab.testing import prompts
from tests.strategies_for_tests import Changing

NAMES = [each.name for each in fields(Cost)]
ADDED = [name for name in NAMES if name not in ("num_layers", *MAXIMA)]

wholes = st.integers(0, 2**40)  # also as seconds, FLOPs and bytes: sums of whole floats below 2**53 are exact
costs = st.builds(Cost, **dict.fromkeys(NAMES, wholes) | {"num_layers": st.sampled_from([0, 30])})

COST = Cost(
    num_layers=30,
    prompt_passes=2,
    decode_passes=5,
    new_tokens=12,
    decode_steps=10,
    executed_layers=150,
    computed_steps=20,
    computed_layers=400,
    late_key_values=5,
    intermediate_predictions=30,
    intermediate_weights=19200,
    flops=4e9,
    bytes_read=6e8,
    prompt_s=0.25,
    decode_s=0.5,
    wall_s=0.75,
    peak_cache_bytes=3 * 2**19,
)


@settings(deadline=None)
@given(costs, costs, costs)
def test_costs_add_up_in_any_order(a, b, c):
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert Cost() + a == a == a + Cost()
    assert sum([a, b, c]) == sum([a, b, c], Cost()) == a + b + c


@settings(deadline=None)
@given(costs, costs)
def test_counts_add_and_what_is_a_maximum_does_not(a, b):
    total = a + b
    for name in ADDED:
        assert getattr(total, name) == getattr(a, name) + getattr(b, name), name
    for name in ("num_layers", "wall_s", "peak_cache_bytes"):
        assert getattr(total, name) == max(getattr(a, name), getattr(b, name)), name


def test_the_maxima_are_wall_time_and_memory():
    assert set(MAXIMA) == {"wall_s", "peak_cache_bytes"}
    assert {"flops", "bytes_read", "prompt_s", "decode_s", "late_key_values"} <= set(ADDED)


def test_costs_of_two_models_are_refused_and_so_is_another_thing():
    with pytest.raises(UserError, match="models with 30 and with 24 layers; expected one model"):
        COST + Cost(num_layers=24)
    with pytest.raises(TypeError):
        COST + 1
    with pytest.raises(TypeError):
        1 + COST


def test_figures_by_hand():
    assert COST.figures() == pytest.approx(
        {
            "average_layers": 15.0,
            "share_skipped": 0.5,
            "compute_layers": 20.0,
            "decode_step_ms": 100.0,
            "tokens_per_second": 20.0,
            "prompt_ms": 125.0,
            "flops_per_token": 4e8,
            "bytes_per_token": 6e7,
            "late_key_values_per_token": 0.5,
            "intermediate_predictions_per_token": 3.0,
            "cache_peak_mib": 1.5,
        },
        rel=1e-15,
    )


@pytest.mark.parametrize(
    ("missing", "no_numbers"),
    [
        ("prompt_passes", {"prompt_ms"}),
        ("decode_passes", {"decode_step_ms"}),
        ("decode_s", {"tokens_per_second"}),
        ("computed_steps", {"compute_layers"}),
        ("num_layers", {"share_skipped", "cache_peak_mib"}),
        (
            "decode_steps",
            {"average_layers", "share_skipped"} | {name for name in COST.figures() if name.endswith("_per_token")},
        ),
        (None, set()),
    ],
)
def test_what_was_not_measured_is_no_number(missing, no_numbers):
    cost = replace(COST, **{missing: 0}) if missing else COST
    assert {name for name, value in cost.figures().items() if math.isnan(value)} == no_numbers


def test_an_empty_cost_has_no_figure():
    assert all(map(math.isnan, Cost().figures().values()))


def test_each_field_and_each_figure_is_explained():
    explained = re.findall(r"^        (\w+): ", Cost.__doc__.partition("Attributes:")[2], flags=re.MULTILINE)
    assert explained == NAMES
    assert re.findall(r"- ``(\w+)``:", Cost.figures.__doc__) == list(
        replace(COST, verifications=1, encoder_flops=1).figures()
    )


def test_two_uneven_processes_equal_one():
    """As torchmetrics joins them: states of each process stacked, then summed, or their maximum taken."""
    parts = [
        replace(COST, executed_layers=100 + n, flops=1e9 * n, wall_s=float(n), decode_s=n / 8) for n in range(1, 6)
    ]
    one, processes = Efficiency(), [Efficiency(), Efficiency()]
    for number, part in enumerate(parts):
        one.update(part)
        processes[number == 4].update(part)  # four to one
    joined = Efficiency()
    joined.update(Cost())
    for name, reduce in joined._reductions.items():
        setattr(joined, name, reduce(torch.stack([getattr(process, name) for process in processes])))
    assert joined.cost() == one.cost() == sum(parts)
    assert joined.cost().wall_s == 5


@pytest.fixture
def uneven(tiny):
    """A llama whose third layer has a wider MLP than the others."""
    model = copy.deepcopy(tiny())
    config = copy.deepcopy(model.config)
    config.intermediate_size *= 5
    layers = model.model.layers
    layers[2].mlp = type(layers[2].mlp)(config).to(model.dtype)
    return model


class Only(SkipDecode):
    """Runs the same layers in each step."""

    def __init__(self, *layers):
        super().__init__(1, 1)
        self.layers = layers

    def layers_at(self, step, num_layers, max_steps):
        return self.layers


def output_of(model, strategy):
    input_ids, mask = prompts(1)
    with torch.no_grad():
        return generate(
            model, input_ids=input_ids, attention_mask=mask, strategy=strategy, eos_token_id=None, max_new_tokens=5
        )


def parameters(module):
    return sum(weight.numel() for weight in module.parameters())


def test_each_layer_counts_with_its_own_weights(uneven):
    """Two schedules of the same depth, with and without the wide layer, differ by what it is wider, in 4 steps."""
    layers = uneven.model.layers
    wider = parameters(layers[2]) - parameters(layers[3])
    assert wider == 4 * 3 * uneven.config.hidden_size * uneven.config.intermediate_size
    with_it, without = (output_of(uneven, Only(0, layer)).trace for layer in (2, 3))
    assert with_it.average_layers == without.average_layers == 2
    assert decode_flops(uneven, with_it) - decode_flops(uneven, without) == 4 * 2 * wider
    size = uneven.dtype.itemsize
    assert decode_bytes(uneven, with_it) - decode_bytes(uneven, without) == pytest.approx(4 * size * wider)


def test_bytes_by_hand(tiny):
    """Four passes of all layers and the head; step t attends to the prompt, t earlier new tokens and its own."""
    model = tiny()
    output = output_of(model, FullDepth())
    config, size, length = model.config, model.dtype.itemsize, output.trace.prompt_length
    weights = sum(map(parameters, (*model.model.layers, model.model.norm, model.lm_head)))
    attended = sum(length + step + 1 for step in range(4)) * config.num_hidden_layers
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_key_value_heads * head_dim * attended
    assert decode_bytes(model, output.trace) == size * (4 * weights + cached)


def test_the_cost_of_a_decode_is_that_of_its_trace(tiny):
    model = tiny()
    output = output_of(model, Changing())
    cost, trace = decode_cost(model, output), output.trace
    assert (cost.num_layers, cost.prompt_passes, cost.decode_passes) == (model.config.num_hidden_layers, 1, 4)
    assert (cost.new_tokens, cost.decode_steps, cost.computed_steps) == (5, 4, 4)
    assert cost.executed_layers == cost.computed_layers == int(trace.executed.sum())
    assert (cost.flops, cost.bytes_read) == (decode_flops(model, trace), decode_bytes(model, trace))
    assert cost.late_key_values == trace.filled
    assert cost.wall_s == cost.prompt_s + cost.decode_s > 0
    assert cost.peak_cache_bytes == output.cache_bytes > 0
