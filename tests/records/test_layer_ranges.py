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
    assert layers_in(layer_ranges(layers)) == sorted(layers)
