"""Sets of layers as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsdlab.records.layer_ranges import layer_ranges, layers_in


@pytest.mark.parametrize(
    ("layers", "text"),
    [([], ""), ([7], "7"), ([3, 4], "3-4"), ([0, 2, 4], "0,2,4"), ([29, 0, 1, 15, 2], "0-2,15,29")],
)
def test_neighbours_become_a_range(layers, text):
    assert layer_ranges(layers) == text


@given(st.sets(st.integers(0, 80)))
def test_what_was_written_is_read_back(layers):
    assert list(layers_in(layer_ranges(layers)).items()) == [(layer, 1) for layer in sorted(layers)]


@given(st.dictionaries(st.integers(0, 40), st.sampled_from(["whole", "attention", "mlp"])))
def test_parts_of_layers_are_halves(kinds):
    of_kind = [[layer for layer, kind in kinds.items() if kind == each] for each in ("whole", "attention", "mlp")]
    found = layers_in(layer_ranges(*of_kind))
    assert list(found.items()) == [(layer, 1 if kinds[layer] == "whole" else 0.5) for layer in sorted(kinds)]


def test_parts_of_layers_as_text():
    assert layer_ranges([0, 1, 5], attention_only=[4], mlp_only=[2, 3, 6]) == "0-1,2-3m,4a,5,6m"
