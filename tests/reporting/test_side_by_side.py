"""Two models under the same strategies: the table, the terminal's table and the picture."""

from dataclasses import replace

import pytest
from rich.console import Console

from hsdlab.records.comparison import compare_results
from hsdlab.reporting.side_by_side import side_by_side_figure, side_by_side_table, side_by_side_terminal
from hsdlab.runs.demo import how_to_read
from tests.markdown_tables import unpadded
from tests.results import RUN, at_step_ms


@pytest.fixture
def both(full_depth, hsd):
    """Full depth and HSD of a plain model; full depth alone of another, at half the time."""
    results = [full_depth, hsd, at_step_ms(full_depth, 5)]
    return compare_results(results, RUN, ["plain", "plain", "to skip"])


def test_a_strategy_has_one_line_with_the_figures_of_each_model(both):
    lines = unpadded(side_by_side_table(both)).splitlines()
    assert lines[0] == (
        "| Strategy | plain: layers | plain: ROUGE-1 | plain: % | plain: ms per step | to skip: layers | "
        "to skip: ROUGE-1 | to skip: % | to skip: ms per step |"
    )
    assert lines[2].startswith("| `FullDepth` | 4.0 | 0.700 | 100 | 10.0 | 4.0 | 0.700 | 100 [100, 100] | 5.00")
    assert lines[3].startswith("| `HSD(")
    assert lines[3].endswith("| – | – | – | – |")
    assert len(lines) == 4


def test_the_terminal_shows_the_same_in_120_columns(both):
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(side_by_side_terminal(both))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 120
    assert "0.700 100%" in text
    assert [word for word in ("plain", "to skip", "ms per step", "[100, 100]") if word not in text] == []


def test_the_picture_has_a_point_for_each_and_numbers_them(both):
    figure = side_by_side_figure(both)
    left, right = figure.axes
    assert left.get_ylabel() == "ROUGE-1, % of the model plain at full depth"
    assert sorted(text.get_text() for text in left.texts) == ["1", "1", "2"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:-1] == ["100 %", "plain", "to skip", "1  FullDepth", "2  HSD(1, 0, 2)"]
    points = {
        line.get_label(): line.get_xydata().tolist() for line in left.lines if not line.get_label().startswith("_")
    }
    assert points["plain"][-1] == [4.0, pytest.approx(100)]
    assert len(points["plain"]) == 2
    assert points["to skip"] == [[4.0, pytest.approx(100)]]
    assert [line.get_xydata()[0][0] for line in right.lines if line.get_label() == "to skip"] == [5.0]


def test_times_that_the_layers_do_not_allow_or_that_save_nothing_are_marked(both):
    rows = tuple(replace(row, speed_up=9.0) if row.run == "to skip" else row for row in both.rows)
    rows = tuple(replace(row, speed_up=0.8) if row.class_name == "HSD" else row for row in rows)
    marked = side_by_side_table(replace(both, rows=rows))
    assert "5.00 ‡" in marked
    assert "8.00 †" in marked
    figure = side_by_side_figure(replace(both, rows=rows))
    assert sorted(text.get_text() for text in figure.axes[1].texts) == ["1", "1‡", "2†"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[-2:] == ["slower than full depth", "faster than its layers allow"]
    assert "the machine may have done other work" in how_to_read(replace(both, rows=rows))
