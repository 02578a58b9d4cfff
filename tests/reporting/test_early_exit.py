"""Where tokens exit early: the table, the pictures, and the comparisons that have them."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from hsdlab.reporting import tensorboard
from hsdlab.reporting.comparison import write_comparison
from hsdlab.reporting.early_exit import deciding_by_token, early_exit_figure, early_exit_text_figure
from tests.results import compared


@pytest.fixture
def early(recorded):
    """Two texts "The *one*\\n $2$": 1, 4, 1 and 4, 4, 1 of 4 layers after the prefill."""
    _, hsd = recorded
    tokens = ("The", " *one*", "\n", " $2$")
    a, b = (
        replace(each, tokens=tokens, layers=layers, source="one", decode_steps=3, prediction="The *one*\n $2$")
        for each, layers in zip(hsd.examples, (("0", "0-3", "0"), ("0-3", "0-3", "0")), strict=True)
    )
    return replace(hsd, examples=(a, b), name="CALM(threshold=0.5)")


def test_the_histogram_is_of_all_tokens_and_each_kind_has_its_mean(recorded, early):
    results = [recorded[0], early]
    left, right = early_exit_figure(deciding_by_token(compared(*results).rows, results)).axes
    heights = np.array([bar.get_height() for bar in left.patches]).reshape(3, 5)  # (thirds, 0 to 4 layers)
    np.testing.assert_allclose(heights, [[0, 1 / 6, 0, 0, 1 / 6], [0, 0, 0, 0, 2 / 6], [0, 2 / 6, 0, 0, 0]])
    assert left.get_title(loc="left") == "2  CALM(0.5): 2.5 of 4 layers"
    names = [label.get_text() for label in right.get_yticklabels()]
    bars = {names[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in right.patches[:3]}
    assert bars == {"start of a word": 2.5, "number": 1, "white space": 4}
    assert right.texts[0].get_text() == "2.5   2 tokens"


def test_a_comparison_has_the_pictures_and_the_table_only_where_exits_differ(recorded, early, tmp_path):
    full_depth, _ = recorded
    results = [full_depth, early]
    comparison = compared(*results)
    pictures = write_comparison(comparison, results, tmp_path / "early")
    assert {"early_exit", "early_exit_text"} <= pictures.keys()
    assert imread(tmp_path / "early" / "early_exit.png").shape[1] == 2200
    text = (tmp_path / "early" / "comparison.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["", "white space", "4.0 (33%)"] in lines
    assert ["Words and numbers", "in the source", "2.5 (33%)"] in lines
    assert "](early_exit.png)" in text
    assert "](early_exit_text.png)" in text
    write_comparison(compared(*recorded), recorded, tmp_path / "schedules")
    assert not list((tmp_path / "schedules").glob("early_exit*"))
    assert "early" not in (tmp_path / "schedules" / "comparison.md").read_text(encoding="utf-8")


def test_the_texts_are_those_of_the_strategies_that_decide_by_token(recorded, early):
    results = [recorded[0], early]
    axes, *_ = early_exit_text_figure(deciding_by_token(compared(*results).rows, results)).axes
    titles = [text.get_text() for text in axes.texts if text.get_weight() == "bold"]
    assert titles == ["b", "2 CALM(0.5): 2.0 layers", "a", "2 CALM(0.5): 2.0 layers"]


def test_the_run_of_the_strategy_in_tensorboard_has_the_histogram(recorded, early, tmp_path, monkeypatch):
    tags = []
    monkeypatch.setattr(tensorboard, "add_picture", lambda writer, tag, picture: tags.append(tag))
    for result in (recorded[1], early):
        comparison = compared(result)
        tensorboard.write_strategy(comparison, comparison.rows[0], result, tmp_path / result.class_name)
    assert tags == ["depth/heat_map", "depth/text", "depth/heat_map", "depth/early_exit", "depth/text"]
