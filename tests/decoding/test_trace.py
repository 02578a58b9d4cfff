"""What a trace says, on a hand-made log: three rows of which the second ends early, four layers."""

import math

import pytest
import torch

from hsdlab.decoding.trace import ProbeCost, trace_along

T, F = True, False


def test_rows_of_a_batch():
    log = [
        torch.tensor([[T, F, F, T], [T, T, F, T], [T, T, T, T]]),
        torch.tensor([[T, F, F, F], [T, T, T, T], [F, F, F, T]]),
    ]
    late = torch.tensor([0, 1, 2, 4]), torch.tensor([0, 1, 1, 2])
    trace = trace_along(
        log, torch.tensor([3, 2, 3]), num_layers=4, prompt_length=5, late=late, probes=ProbeCost(9, 0, 0)
    )
    assert trace.live.tolist() == [[T, T, T], [T, F, T]]
    assert trace.depths.tolist() == [[2, 3, 4], [1, 0, 1]]
    assert trace.average_layers == pytest.approx((2 + 3 + 4 + 1 + 1) / 5)
    assert trace.row_average_layers == pytest.approx([1.5, 3.0, 2.5])
    assert trace.compute_layers == trace.average_layers  # a finished row is not live
    mask = trace.mask(5)
    assert mask.shape == (3, 8, 4)
    assert mask[:, :5].all()
    assert mask[0, 5:].tolist() == [[T, F, F, T], [T, F, F, F], [T] * 4]
    assert mask[1, 5:].tolist() == [[T, T, F, T], [T] * 4, [T] * 4]
    assert (trace.num_layers, trace.filled, trace.probes.rows) == (4, 7, 9)


def test_beams_are_followed_through_the_search():
    log = [
        torch.tensor([[T, F, F, T], [T, T, F, T]]),
        torch.tensor([[T, F, F, F], [T, T, T, T]]),
    ]
    beam_rows = torch.tensor([[1, 0]])  # the hypothesis was in row 1, then in row 0
    trace = trace_along(log, torch.tensor([3]), 4, 5, beam_rows=beam_rows, batch_rows=2)
    assert trace.executed[:, 0].tolist() == [[T, T, F, T], [T, F, F, F]]
    assert trace.average_layers == 2.0
    assert trace.compute_layers == (2 + 3 + 1 + 4) / 4


def test_a_log_that_is_the_same_for_all_rows():
    log = [torch.tensor([[T, F, F, T]]), torch.tensor([[F, F, F, T]])]
    trace = trace_along(log, torch.tensor([3, 2]), 4, 5)
    assert trace.depths.tolist() == [[2, 2], [1, 0]]
    beams = trace_along(log, torch.tensor([2]), 4, 5, beam_rows=torch.tensor([[3]]), batch_rows=4)
    assert beams.compute_layers == 1.5  # the search went on after the returned hypothesis had ended
    assert beams.average_layers == 2.0


def test_no_decode_step():
    trace = trace_along([], torch.tensor([1, 1]), num_layers=4, prompt_length=5)
    assert trace.executed.shape == (0, 2, 4)
    assert math.isnan(trace.average_layers)
    assert all(math.isnan(value) for value in trace.row_average_layers)
    assert trace.mask(5).all()


def test_attention_and_mlp_count_as_half_a_layer_each():
    both, attention, mlp, none = [T, T], [T, F], [F, T], [F, F]
    log = [
        torch.tensor([[both, none, attention, mlp], [both, mlp, none, both], [attention, mlp, both, both]]),
        torch.tensor([[both, both, both, attention], [both, both, both, both], [mlp, both, attention, attention]]),
    ]
    trace = trace_along(log, torch.tensor([3, 2, 3]), num_layers=4, prompt_length=5)
    assert trace.depths.tolist() == [[2, 2.5, 3], [3.5, 0, 2.5]]
    assert trace.average_layers == (2 + 2.5 + 3 + 3.5 + 2.5) / 5
    assert trace.row_average_layers == pytest.approx([5.5 / 2, 2.5, 5.5 / 2])
    assert trace.depth_sum == trace.compute_depth_sum == 13.5
    assert trace.mask(5).shape == (3, 8, 4, 2)
    assert trace.mask(5)[1, 5:].tolist() == [[both, mlp, none, both], [both] * 4, [both] * 4]
    assert trace.layers.tokens.tolist() == [[4, 4], [2, 4], [4, 2], [4, 3]]
    assert trace.layers.attended.tolist() == [3 * 6 + 7, 2 * 7, 2 * 6 + 2 * 7, 2 * 6 + 2 * 7]
    # a part is called once for those that run the whole layer, and once for those that run the part alone
    assert trace.layers.passes.tolist() == [[2 + 1, 1 + 2], [0 + 1, 1 + 1], [2 + 2, 1 + 1], [1 + 1, 2 + 0]]


def test_steps_of_whole_layers_among_steps_of_parts():
    log = [torch.tensor([[T, F, T, T]]), torch.tensor([[[T, T], [T, F], [F, F], [F, T]]])]
    beams = trace_along(log, torch.tensor([3]), 4, 5, beam_rows=torch.tensor([[1, 2]]), batch_rows=4)
    assert beams.executed[:, 0].tolist() == [[[T, T], [F, F], [T, T], [T, T]], [[T, T], [T, F], [F, F], [F, T]]]
    assert beams.depths.tolist() == [[3], [2]]
    assert beams.compute_layers == 2.5
    assert beams.layers.tokens.tolist() == [[8, 8], [4, 0], [4, 4], [4, 8]]
    assert beams.layers.passes.tolist() == [[2, 2], [1, 0], [1, 1], [1, 2]]
