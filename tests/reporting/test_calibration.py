"""The report of a calibration and its picture, on settings whose losses are known."""

import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from hsdlab.calibration import fixed_sequence, risk_upper_bound, smallest_sample
from hsdlab.records.calibration import CalibrationResult, CalibrationTest
from hsdlab.reporting.calibration import (
    calibration_markdown,
    guarantee,
    notes,
    print_calibration,
    write_calibration,
)
from hsdlab.reporting.calibration_figure import calibration_figure, choices
from tests.markdown_tables import unpadded
from tests.results import RUN, at_step_ms, compared

NUMBER, ERROR = 100, 0.05


def with_examples(result, **changes):
    """The result over 100 examples."""
    examples = tuple(replace(result.examples[0], id=f"e{number}") for number in range(NUMBER))
    return replace(result, examples=examples, **changes)


@pytest.fixture
def make(full_depth, hsd):
    """Make the result of settings that lose so many of 100 examples whole."""

    def call(*lost, listed=None, loss="risk", tolerance=0.1, step_ms=8.0):
        results = [with_examples(at_step_ms(hsd, step_ms), name=f"HSD(max_exit={9 - i})") for i in range(len(lost))]
        losses = [[1.0] * ones + [0.0] * (NUMBER - ones) for ones in lost]
        settings = list(zip(results, losses, strict=True))
        *_, calibration = fixed_sequence(settings, tolerance=tolerance, error=ERROR, bound="binomial")
        names = [result.name for result in results] + ["HSD(max_exit=0)"] * ((listed or len(lost)) - len(lost))
        return CalibrationResult(
            run=RUN,
            tolerance=tolerance,
            error=ERROR,
            bound="binomial",
            loss=loss,
            metric="rougeL",
            settings=tuple(names),
            example_ids=tuple(f"e{number}" for number in range(NUMBER)),
            examples_needed=smallest_sample("binomial", tolerance, ERROR),
            tests=tuple(
                CalibrationTest(tuple(test.losses), test.p_value, calibration.upper_bound(test), test.passed)
                for test in calibration.tests
            ),
            comparison=compared(with_examples(full_depth), *(test.setting for test in calibration.tests)),
        )

    return call


def upper(lost):
    return risk_upper_bound("binomial", [1.0] * lost + [0.0] * (NUMBER - lost), ERROR)


def test_the_guarantee_names_the_last_setting_that_passed(make):
    assert guarantee(make(0, 2, 40, 0)) == (
        "With probability at least 95 % over the draw of the 100 calibration examples, HSD(max_exit=8) loses on "
        "average at most 0.1 ROUGE-L against full depth. On these examples: 2.50 of 4 layers on average, 8.00 ms per "
        "decode step, 1.25× the speed of full depth."
    )
    assert "writes texts that are on average at most 0.1 (1 − ROUGE-L) away" in guarantee(make(0, loss="textual"))


def test_a_speed_beyond_what_the_layers_allow_is_not_promised(make):
    assert guarantee(make(0, step_ms=1.0)).endswith(
        "2.50 of 4 layers on average; times of this run are not to be trusted."
    )


def test_where_nothing_passes_full_depth_is_chosen(make):
    report = make(40, 0)
    assert report.chosen is report.comparison.baseline
    assert report.chosen_test is None
    assert guarantee(report) == (
        "No setting is shown to be one that loses on average at most 0.1 ROUGE-L against full depth: take full depth "
        "(4.00 of 4 layers on average, 10.0 ms per decode step). The first in the list, HSD(max_exit=9), has a mean "
        f"loss of 0.400, and a risk of at most {upper(40):.3f} with probability 95 %."
    )
    few = make(0, tolerance=0.01)
    assert "With 100 examples none could pass: 299 are needed, or more." in guarantee(few)
    assert notes(few)[-1] == "Too few examples: 100. A setting that never loses passes with 299."


@pytest.mark.parametrize(
    ("lost", "listed", "end"),
    [
        ((0, 40), 4, "2 of 4 settings were tested: the first that does not pass ends the test, and no later one"),
        ((0, 40), 2, "2 of 2 settings were tested: the first that does not pass ends the test."),
        ((0, 1), 2, "2 of 2 settings were tested: all passed"),
        ((0, 1), 3, "2 of 3 settings were tested: the run was cut short"),
    ],
)
def test_the_first_note_says_why_the_test_ended(lost, listed, end, make):
    assert notes(make(*lost, listed=listed))[0].startswith(end)


def test_markdown_has_a_line_for_full_depth_and_for_each_test(make):
    lines = unpadded(calibration_markdown(make(0, 40, 0))).splitlines()
    table = [line for line in lines if line.startswith("| `")]
    assert table[0] == "| `FullDepth()` | 0 | 0 | – | reference | 4.00 | 10.0 | 1.00× |"
    assert table[1].startswith(f"| `HSD(max_exit=9)` | 0.0000 | {upper(0):.4f} | 3e-05 | yes | 2.50 | 8.00 | 1.25×")
    assert table[2].startswith(f"| `HSD(max_exit=8)` | 0.4000 | {upper(40):.4f} | 1 | no |")
    assert len(table) == 3


def test_json_holds_the_loss_of_each_example_and_the_run(make):
    report = make(0, 2)
    document = json.loads(report.to_json())
    assert report.chosen.name == "HSD(max_exit=8)"
    assert (len(document["example_ids"]), document["examples_needed"]) == (100, 29)
    assert document["run"]["seed"] == 7
    test = document["tests"][1]
    assert list(zip(document["example_ids"], test["losses"], strict=True))[:3] == [("e0", 1), ("e1", 1), ("e2", 0)]
    assert report.tests[1].mean_loss == 0.02
    assert test["passed"]
    assert test["risk_upper_bound"] == pytest.approx(upper(2))
    assert document["comparison"]["rows"][2]["figures"]["decode_step_ms"] == 8.0
    assert document["comparison"]["rows"][2]["speed_up"] == 1.25


def test_terminal_shows_the_table_and_the_guarantee(make):
    console = Console(width=120, record=True, file=StringIO())
    print_calibration(make(0, 40), console)
    text = console.export_text()
    assert "Calibration on 100 examples" in text
    assert "Risk at most" in text
    assert "HSD(max_exit=9) loses on average" in " ".join(text.split())


def test_each_tolerance_chooses_the_last_setting_that_all_before_it_allow(make):
    steps = choices(make(0, 1, 5))
    assert [(step.start, step.number, step.mean_loss, step.upper_bound) for step in steps] == [
        (0, 1, 0, 0),
        (upper(0), 2, 0, upper(0)),
        (upper(1), 3, 0.01, upper(1)),
        (upper(5), 4, 0.05, upper(5)),
    ]
    for step in steps[1:]:  # as the test itself would choose
        assert make(0, 1, 5, tolerance=step.start + 1e-6).chosen.name == f"HSD(max_exit={11 - step.number})"


def test_a_setting_that_passes_only_with_the_one_before_takes_its_place(make):
    steps = choices(make(5, 2, 0, tolerance=0.2))
    assert [(step.start, step.number, step.mean_loss) for step in steps] == [(0, 1, 0), (upper(5), 4, 0)]


def lines(axes, colour):
    return [line.get_xydata().tolist() for line in axes.lines if line.get_color() == colour]


def test_the_picture_ends_where_settings_were_not_decoded(make):
    figure = calibration_figure(make(0, 40, 0))
    (axes,) = figure.axes
    staircase = lines(axes, "#0072B2")[0]
    assert staircase[0] == [0, 0]
    assert staircase[-1] == [upper(40), 0.4]
    assert axes.get_xlim()[1] == pytest.approx(1.12 * upper(40))
    bar, point = lines(axes, "#000000")
    assert bar == [[0.1, 0], [0.1, upper(0)]]
    assert point == [[0.1, 0]]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "later settings not decoded" in texts
    assert texts[-2:] == ["2  HSD(9)", "3  HSD(8)"]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]


def test_the_picture_goes_on_where_the_last_setting_is_known(make):
    figure = calibration_figure(make(0, 2, tolerance=0.3))
    staircase = lines(figure.axes[0], "#0072B2")[0]
    assert staircase[-1] == [pytest.approx(0.336), 0.02]
    assert "later settings not decoded" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_write(make, tmp_path):
    report = make(0, 40)
    write_calibration(report, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "calibration.json",
        "calibration.md",
        "calibration.png",
    ]
    assert (tmp_path / "new" / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert CalibrationResult.read(tmp_path / "new" / "calibration.json") == report
