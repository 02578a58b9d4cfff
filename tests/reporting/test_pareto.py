"""The picture: what is drawn where, and that no number stands on another."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest

from hsdlab.costs import Cost
from hsdlab.reporting.pareto import COLOURS, MARKERS, frontier, pareto_figure
from tests.results import compared, with_cost


def points(axes):
    """(x, y, colour) of the markers, in order."""
    lines = [line for line in axes.lines if line.get_marker() in MARKERS]
    return [(line.get_xdata()[0], line.get_ydata()[0], line.get_color()) for line in lines]


def cost(average_layers, step_ms):
    return Cost(
        num_layers=4, decode_passes=1, decode_steps=100, executed_layers=100 * average_layers, decode_s=step_ms / 1000
    )


def numbers(axes):
    return [text for text in axes.texts if text.get_text().rstrip("†‡").isdigit()]


def test_frontier_by_hand():
    cloud = [(4, 0.9), (3, 0.5), (2, 0.7), (2, 0.6), (1, 0.2), (5, 0.9)]
    assert frontier(cloud) == [(1, 0.2), (2, 0.7), (4, 0.9)]
    assert frontier([]) == []


def test_points_intervals_and_frontier(full_depth, hsd, calm):
    figure = pareto_figure(compared(full_depth, hsd, calm), "rouge1")
    layers, time = figure.axes
    black, blue, orange = COLOURS[:3]
    assert points(layers) == [(4.0, 0.7, black), (2.5, 0.45, blue), (3.0, 0.7, orange)]
    assert points(time) == [(10.0, 0.7, black), (8.0, 0.45, blue), (12.5, 0.7, orange)]
    bars = [list(line.get_ydata()) for line in layers.lines if line.get_marker() == "_"]
    assert bars == [pytest.approx([0.6, 0.8]), pytest.approx([0.3, 0.6]), pytest.approx([0.6, 0.8])]
    dashed = [
        [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "--"] for axes in figure.axes
    ]
    assert dashed == [[[[2.5, 0.45], [3.0, 0.7]]], [[[8.0, 0.45], [10.0, 0.7]]]]
    assert layers.get_xlabel() == "Average layers per decode step (of 4)"
    assert time.get_xlabel() == "Milliseconds per decode step, measured"
    assert layers.get_ylabel() == "ROUGE-1, with 95% interval"


def test_a_strategy_of_quality_0_is_not_on_the_frontier(full_depth, hsd):
    layers, _ = pareto_figure(compared(full_depth, replace(hsd, scores={"rouge1": 0.0})), "rouge1").axes
    assert [line.get_xydata().tolist() for line in layers.lines if line.get_linestyle() == "--"] == [[[4.0, 0.7]]]


def test_marks_of_times_stand_beside_the_numbers_and_in_the_legend(full_depth, hsd, calm):
    figure = pareto_figure(compared(full_depth, hsd, calm), "rouge1")
    assert [text.get_text() for axes in figure.axes for text in numbers(axes)] == ["1", "2", "3", "1", "2", "3†"]
    assert figure.legends[0].get_texts()[-1].get_text() == "slower than full depth"


def test_legend_names_the_numbers_and_a_class_keeps_its_colour(full_depth, hsd):
    results = [hsd, full_depth, replace(hsd)]
    figure = pareto_figure(compared(*results), "rouge1")
    legend = figure.legends[0]
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["1  HSD(1, 0, 2)", "2  FullDepth", "3  HSD(1, 0, 2)", "Pareto frontier"]
    colours = [handle.get_color() for handle in legend.legend_handles[:3]]
    assert colours == [COLOURS[1], COLOURS[0], COLOURS[1]]  # the baseline is black wherever it stands
    assert [text.get_text() for text in numbers(figure.axes[0])] == ["1", "2", "3"]


def test_numbers_cover_neither_each_other_nor_a_point(full_depth):
    crowd = [
        replace(
            full_depth,
            name=f"FullDepth({index})",
            scores={"rouge1": 0.7 + 0.001 * (index % 2)},
            cost=cost(4.0 - 0.12 * index, 10.0 - index),
            examples=full_depth.examples[:1],  # no bars, which would keep the numbers apart by themselves
        )
        for index in range(12)
    ]
    far = replace(crowd[0], cost=cost(0.5, -25.0), scores={"rouge1": 0.65})
    crowd.append(far)  # presses the others together
    figure = pareto_figure(compared(*crowd), "rouge1")
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in numbers(axes)]
        assert len(boxes) == 13
        assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
        centres = [axes.transData.transform((x, y)) for x, y, _ in points(axes)]
        assert not any(box.contains(*centre) for box in boxes for centre in centres)


def test_what_was_not_measured_is_left_out(full_depth, hsd):
    no_steps = with_cost(full_depth, decode_passes=0)
    layers, time = pareto_figure(compared(no_steps, hsd), "rouge1").axes
    assert [x for x, _, _ in points(layers)] == [4.0, 2.5]
    assert [x for x, _, _ in points(time)] == [8.0]
    assert [text.get_text() for text in numbers(time)] == ["2"]
    _, time = pareto_figure(compared(no_steps), "rouge1").axes
    assert points(time) == []
    assert [text.get_text() for text in time.texts] == ["not measured"]


def test_the_interval_of_the_speed_up_is_a_bar_of_the_time(full_depth, hsd):
    comparison = compared(full_depth, hsd)
    full, row = comparison.rows
    assert row.speed_up_interval is None
    row = replace(row, speed_up_interval=(row.speed_up / 2, row.speed_up * 4))
    _, times = pareto_figure(replace(comparison, rows=(full, row)), "rouge1").axes
    (bar,) = [line for line in times.lines if line.get_marker() == "|"]
    step_ms = row.figure("decode_step_ms")
    assert list(bar.get_xdata()) == pytest.approx([step_ms * 2, step_ms / 4])
    assert list(bar.get_ydata()) == [row.quality["rouge1"].value] * 2


def test_without_an_interval_there_is_a_point_and_no_bar(full_depth):
    figure = pareto_figure(compared(replace(full_depth, examples=full_depth.examples[:1])), "rouge1")
    assert len(points(figure.axes[0])) == 1
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "_"]


def test_unknown_metric_is_refused_and_a_missing_one_is_an_empty_picture(full_depth):
    report = compared(full_depth)
    with pytest.raises(ValueError, match=r"Got metric 'rouge_l'\. Expected one of rouge1, rouge2, rougeL"):
        pareto_figure(report, "rouge_l")
    assert [text.get_text() for axes in pareto_figure(report).axes for text in axes.texts] == ["not measured"] * 2


def test_pyplot_is_left_alone(full_depth):
    pareto_figure(compared(full_depth), "rouge1")
    assert plt.get_fignums() == []
