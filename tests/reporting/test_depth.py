"""Depth by position: the arrays by hand, and what the heat map shows."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from hsdlab.costs import Cost
from hsdlab.records.example import ExampleRecord
from hsdlab.reporting.depth import depth_figure, shares_run, token_depths
from tests.results import compared, replace_examples


def drawn(*results):
    return depth_figure(compared(*results).rows, results)


def of(layers=(), tokens=(), prediction=""):
    return ExampleRecord("x", prediction, (), 1, None, layers=layers, tokens=tokens)


def panels(figure):
    return [axes for axes in figure.axes if axes.images]


def test_shares_are_of_the_examples_that_took_the_step():
    examples = [of(("0-2", "0,2")), of(("0,2",)), of(()), of()]
    assert shares_run(examples, num_layers=3).tolist() == [[1, 0.5, 1], [1, 0, 1]]
    assert shares_run(examples[2:], num_layers=3).shape == (0, 3)
    assert shares_run([], num_layers=3).shape == (0, 3)


def test_attention_and_mlp_alone_are_half_a_layer():
    examples = [of(("0,1a,2m",), ("The", " end")), of(("0,1",))]
    assert shares_run(examples, num_layers=4).tolist() == [[1, 0.75, 0.25, 0]]
    assert token_depths(examples[0], num_layers=4) == [("The", 4), (" end", 2)]


def test_the_first_token_comes_from_all_layers_and_the_next_from_those_of_their_step():
    example = of(("0,2-3", "0"), ("The", " end", "."))
    assert token_depths(example, num_layers=4) == [("The", 4), (" end", 3), (".", 1)]
    assert token_depths(of((), ("The",)), num_layers=4) == [("The", 4)]
    assert token_depths(of(prediction="The"), num_layers=4) == []
    with pytest.raises(ValueError, match="zip"):
        token_depths(of(("0",), ("The",)), num_layers=4)


def test_a_panel_for_each_strategy_with_layers_upwards_on_one_scale(recorded):
    figure = drawn(*recorded)
    full, hsd = panels(figure)
    assert full.images[0].get_array().tolist() == [[1, 1, 1]] * 4  # (layers, steps)
    assert hsd.images[0].get_array().tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]]
    assert {axes.images[0].get_clim() for axes in (full, hsd)} == {(0, 1)}
    assert {axes.images[0].get_cmap().name for axes in (full, hsd)} == {"Blues"}
    assert full.images[0].origin == "lower"
    assert (hsd.get_xlim(), hsd.get_ylim()) == ((-0.5, 2.5), (-0.5, 3.5))
    assert hsd.get_title(loc="left") == "2  HSD(1, 0, 2)\n2.5 of 4 layers"
    assert figure.get_supxlabel() == "Decode step"
    assert figure.get_supylabel() == "Layer"
    assert figure.axes[-1].get_ylabel() == "Share of examples for\nwhich the layer ran"


def test_shorter_texts_leave_grey_at_the_right(recorded):
    full, hsd = recorded
    short = replace_examples(hsd, layers=("0,3",))
    figure = drawn(full, short)
    axes = panels(figure)[1]
    assert axes.images[0].get_array().shape == (4, 1)
    assert axes.get_xlim() == (-0.5, 2.5)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())  # (height, width, 4), from the top
    x, y = (int(each) for each in axes.transData.transform((2, 1.5)))
    assert pixels[-y, x, :3].tolist() == [0xE4] * 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no text was that long"]
    assert drawn(full, full).legends == []


def test_seven_strategies_leave_no_empty_panel_and_every_column_has_its_scale(recorded):
    full = recorded[0]
    results = [replace(full, name=f"FullDepth({index})") for index in range(7)]
    figure = drawn(*results)
    assert len(panels(figure)) == 7
    assert sum(axes.get_visible() for axes in figure.axes) == 8  # and the colour scale
    labelled = [bool(axes.xaxis.get_tick_params()["labelbottom"]) for axes in panels(figure)]
    assert labelled == [False] * 4 + [True] * 3


def test_what_was_not_recorded_is_said(full_depth):
    (axes,) = panels(drawn(full_depth))
    assert [text.get_text() for text in axes.texts] == ["not recorded"]
    no_steps = replace(full_depth, cost=Cost(), examples=())
    (axes,) = panels(drawn(no_steps))
    assert axes.get_title(loc="left") == "1  FullDepth\nno decode step"


def test_names_are_not_read_as_formulas_and_long_ones_are_wrapped(recorded):
    strange = replace(recorded[0], name=f"Mine(text='$\\frac$', {', '.join(f'option_{i}' for i in range(9))})")
    figure = drawn(strange)
    figure.canvas.draw()  # a formula that is none would raise here
    (axes,) = panels(figure)
    lines = axes.get_title(loc="left").splitlines()
    assert lines[0].startswith("1  Mine($\\frac$, option_0")
    assert max(map(len, lines)) <= 42


def test_pyplot_is_left_alone(recorded):
    drawn(*recorded)
    assert plt.get_fignums() == []
