"""The report of a tuning and its picture, on settings whose figures are known."""

import json
import math
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from hsdlab import HSD, SkipDecode
from hsdlab.records.strategy import StrategyConfig
from hsdlab.records.tuning import DecodedSetting, TunedSetting, TuningGoal, TuningResult
from hsdlab.reporting.tuning import notes, print_tuning, summary, tuning_markdown, write_tuning
from hsdlab.reporting.tuning_figure import tuning_figure
from hsdlab.tuning import Goal
from tests.markdown_tables import unpadded
from tests.results import RUN, at_step_ms, compared


def setting(strategy, layers, speed_up, score=None):
    return TunedSetting(repr(strategy), StrategyConfig.of(strategy.config()), layers, speed_up, score)


SLOW = setting(HSD(1, 0, 2), 3.0, 1.25, 0.5)
MIDDLE = setting(HSD(2, 0, 2), 2.5, 1.5, 0.75)
FAST = setting(SkipDecode(1, 2), 2.0, 2.0, 1.0)
BEATEN = setting(SkipDecode(1, 3), 3.0, 1.25, 2.0)
PRUNED = setting(HSD(1, 2, 2), 3.5, 1.1)


@pytest.fixture
def make(full_depth, hsd):
    """Make the result of what was decoded: place on the frontier to ROUGE-1 (of full depth's .7) and time of a step."""

    def call(decoded, metric="rouge1", frontier=(SLOW, MIDDLE, FAST), **goal):
        places = sorted(decoded)
        results = [
            replace(
                at_step_ms(hsd, decoded[place][1]),
                name=frontier[place].name,
                strategy=frontier[place].strategy,
                scores=hsd.scores | {"rouge1": decoded[place][0]},
            )
            for place in places
        ]
        comparison = compared(full_depth, *results)
        asked = Goal(**goal)
        shares, verdicts = [math.nan] * len(frontier), [None] * len(frontier)
        for place, row in zip(places, comparison.rows[1:], strict=True):
            shares[place] = row.percent_of_baseline[metric].value / 100
            verdicts[place] = asked.met(shares[place], row.speed_up)
        return TuningResult(
            run=RUN,
            goal=TuningGoal(**goal),
            metric=metric,
            scored_texts=2,
            reference_nats_per_token=0.25,
            settings=(*frontier, BEATEN, PRUNED),
            frontier=tuple(range(len(frontier))),
            decoded=tuple(DecodedSetting(place, verdicts[place]) for place in places),
            comparison=comparison,
            chosen=asked.chosen(verdicts, shares),
            another_might_be_better=asked.next_to_decode(verdicts) is not None,
        )

    return call


DECODED = {2: (0.35, 5.0), 1: (0.672, 8.0)}


def test_the_summary_names_the_fastest_that_keeps_enough(make):
    assert summary(make(DECODED, max_loss=0.05)) == (
        f"{MIDDLE.name} is the fastest decoded that keeps 95 % or more of full depth's ROUGE-1: 96.0 [50.0, "
        "75.0] % of full depth's ROUGE-1, on 2 validation examples: 2.50 of 4 layers on average, 8.00 ms per decode "
        "step, 1.25× the speed of full depth."
    )
    assert make(DECODED, max_loss=0.5).chosen_row.name == FAST.name


def test_the_summary_names_the_best_that_is_fast_enough(make):
    report = make(DECODED, speedup=1.2)
    assert report.chosen == 1
    assert f"{MIDDLE.name} is the best decoded that is 1.2× as fast as full depth or more: 96.0" in summary(report)
    assert make(DECODED, speedup=1.5).chosen_row.name == FAST.name  # measured, not what the layers would allow
    assert summary(make(DECODED, metric="bleu1", speedup=1.5)).count("BLEU-1") == 1


@pytest.mark.parametrize(
    ("decoded", "frontier", "goal", "expected"),
    [
        (
            DECODED,
            (SLOW, MIDDLE, FAST),
            {"max_loss": 0.01},
            "No decoded setting keeps 99 % or more of full depth's ROUGE-1: take full depth (4.00 of 4 layers on "
            f"average, 10.0 ms per decode step). The closest, {MIDDLE.name}, keeps 96.0 %.",
        ),
        (
            DECODED,
            (SLOW, MIDDLE, FAST),
            {"speedup": 2.5},
            "No decoded setting is 2.5× as fast as full depth or more: take full depth (4.00 of 4 layers on average, "
            f"10.0 ms per decode step). The closest, {FAST.name}, is 2.00×.",
        ),
        (
            {},
            (),
            {"speedup": 9},
            "No setting tried can be 9× as fast as full depth or more, the most is 1.25×: take full depth (4.00 of "
            "4 layers on average, 10.0 ms per decode step).",
        ),
        (
            {},
            (FAST,),
            {"max_loss": 0.1},
            "No setting was decoded: take full depth (4.00 of 4 layers on average, 10.0 ms",
        ),
    ],
)
def test_where_nothing_meets_the_goal_full_depth_is_to_be_taken(decoded, frontier, goal, expected, make):
    report = make(decoded, frontier=frontier, **goal)
    assert summary(report).startswith(expected)
    assert report.chosen_row is report.comparison.baseline
    assert report.chosen is None
    tuning_markdown(report)
    json.loads(report.to_json())
    tuning_figure(report)


def test_the_first_note_says_whether_another_setting_could_change_the_choice(make):
    assert notes(make(DECODED, max_loss=0.05))[0] == (
        "5 different settings were tried, 4 of them scored. 3 are on the frontier of speed and score, 2 of them "
        "decoded: the others could not change the choice."
    )
    assert notes(make({2: DECODED[2]}, max_loss=0.05))[0].endswith("another might be better (--decodes).")
    assert notes(make(DECODED | {0: (0.7, 9.0)}, max_loss=0.05))[0].endswith("3 of them decoded.")


def test_markdown_has_a_line_for_full_depth_and_for_the_frontier(make):
    lines = [
        line for line in unpadded(tuning_markdown(make(DECODED, max_loss=0.05))).splitlines() if line.startswith("| `")
    ]
    assert lines == [
        "| `FullDepth()` | 0.2500 | 1.00× | 100.0 | 4.00 | 10.0 | 1.00× | – |",
        f"| `{SLOW.name}` | 0.5000 | 1.25× | – | 3.00 | – | – | – |",
        f"| `{MIDDLE.name}` | 0.7500 | 1.50× | 96.0 [50.0, 75.0] | 2.50 | 8.00 | 1.25× | chosen |",
        f"| `{FAST.name}` | 1.0000 | 2.00× | 50.0 [50.0, 75.0] | 2.50 | 5.00 | 2.00× ‡ | missed |",
    ]


def test_json_holds_every_setting_and_the_run(make):
    report = make(DECODED, max_loss=0.05)
    document = json.loads(report.to_json())
    assert report.chosen_row.name == MIDDLE.name
    assert document["chosen"] == 1
    assert document["goal"] == {"max_loss": 0.05, "speedup": None}
    assert document["run"]["seed"] == 7
    assert document["decoded"] == [{"place": 1, "met_goal": True}, {"place": 2, "met_goal": False}]
    assert report.verdicts == [None, True, False]
    assert report.frontier_settings == [SLOW, MIDDLE, FAST]
    assert document["comparison"]["rows"][1]["percent_of_baseline"]["rouge1"]["value"] == pytest.approx(96)
    assert report.share(report.rows[1]) == pytest.approx(0.96)
    assert [each["nats_per_token"] for each in document["settings"]] == [0.5, 0.75, 1.0, 2.0, None]
    assert "not_finite" not in document  # the last was not scored, which is another null than a score that is none
    assert document["settings"][3]["strategy"]["init_args"]["max_exit"] == 3


def test_a_score_that_is_no_number_is_null(make):
    report = make(DECODED, max_loss=0.05)
    report = replace(report, settings=(*report.settings, replace(SLOW, nats_per_token=math.nan)))
    assert json.loads(report.to_json())["settings"][-1]["nats_per_token"] is None
    assert math.isnan(TuningResult.from_json(report.to_json()).settings[-1].nats_per_token)
    tuning_figure(report)


def test_terminal_shows_the_frontier_and_the_choice(make):
    console = Console(width=120, record=True, file=StringIO())
    print_tuning(make(DECODED, max_loss=0.05), console)
    text = " ".join(console.export_text().split())
    assert "The frontier, on 2 examples" in text
    assert "is the fastest decoded that keeps 95 % or more" in text


def points(axes, colour):
    return [
        tuple(line.get_xydata()[0]) for line in axes.lines if line.get_color() == colour and len(line.get_xydata()) == 1
    ]


def test_the_picture_has_the_decoded_left_and_all_scores_right(make):
    figure = tuning_figure(make(DECODED, max_loss=0.05))
    left, right = figure.axes
    assert [text.get_text() for text in left.texts] == ["HSD(2, 0, 2)"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["FullDepth", "HSD", "SkipDecode"]
    assert "what has to be kept" in labels
    blue, orange = "#0072B2", "#D55E00"  # HSD, SkipDecode
    assert [x for x, _ in points(left, blue)] == [2.5]
    assert [y for _, y in points(left, blue)] == pytest.approx([96])
    assert set(points(right, blue)) == {(3.0, 0.5), (2.5, 0.75)}  # the pruned one has no score
    assert set(points(right, orange)) == {(2.0, 1.0), (3.0, 2.0)}
    (goal,) = [line.get_ydata()[0] for line in left.lines if line.get_linestyle() == ":"]
    assert goal == 95
    assert not [line for line in tuning_figure(make(DECODED, speedup=1.2)).axes[0].lines if line.get_linestyle() == ":"]


def test_write(make, tmp_path):
    report = make(DECODED, max_loss=0.05)
    write_tuning(report, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["frontier.png", "tuning.json", "tuning.md"]
    assert (tmp_path / "new" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert TuningResult.read(tmp_path / "new" / "tuning.json") == report
