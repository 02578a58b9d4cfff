"""The report of a tuning and its picture, on settings whose figures are known."""

import json
import math
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from hsdlab import HSD, SkipDecode
from hsdlab.reporting import TuningReport
from hsdlab.reporting.tuning_figure import tuning_figure
from hsdlab.tuning import Goal, Setting

SLOW = Setting(HSD(1, 0, 2), average_layers=3.0, ideal_speedup=1.25, score=0.5)
MIDDLE = Setting(HSD(2, 0, 2), average_layers=2.5, ideal_speedup=1.5, score=0.75)
FAST = Setting(SkipDecode(1, 2), average_layers=2.0, ideal_speedup=2.0, score=1.0)
BEATEN = Setting(SkipDecode(1, 3), average_layers=3.0, ideal_speedup=1.25, score=2.0)
PRUNED = Setting(HSD(1, 2, 2), average_layers=3.5, ideal_speedup=1.1)


@pytest.fixture
def make(full_depth, hsd):
    """Make the report of what was decoded: place on the frontier to ROUGE-1 (of full depth's .7) and time of a step."""

    def call(decoded, metric="rouge1", frontier=(SLOW, MIDDLE, FAST), **goal):
        results = {
            place: replace(
                hsd,
                name=repr(frontier[place].strategy),
                strategy=frontier[place].strategy.config(),
                scores=hsd.scores | {"rouge1": quality},
                efficiency=hsd.efficiency | {"decode_step_ms": step_ms},
            )
            for place, (quality, step_ms) in decoded.items()
        }
        settings = [*frontier, BEATEN, PRUNED]
        return TuningReport(Goal(**goal), metric, full_depth, 0.25, settings, frontier, results, 2, {"seed": 7})

    return call


DECODED = {2: (0.35, 5.0), 1: (0.672, 8.0)}


def test_the_summary_names_the_fastest_that_keeps_enough(make):
    assert make(DECODED, max_loss=0.05).summary() == (
        f"{MIDDLE.strategy!r} is the fastest decoded that keeps 95 % or more of full depth's ROUGE-1: 96.0 [50.0, "
        "75.0] % of full depth's ROUGE-1, on 2 validation examples: 2.50 of 4 layers on average, 8.00 ms per decode "
        "step, 1.25× the speed of full depth."
    )
    assert make(DECODED, max_loss=0.5).chosen.name == repr(FAST.strategy)


def test_the_summary_names_the_best_that_is_fast_enough(make):
    report = make(DECODED, speedup=1.2)
    assert report.chosen_place == 1
    assert (
        f"{MIDDLE.strategy!r} is the best decoded that is 1.2× as fast as full depth or more: 96.0" in report.summary()
    )
    assert make(DECODED, speedup=1.5).chosen.name == repr(FAST.strategy)  # measured, not what the layers would allow
    assert make(DECODED, metric="bleu1", speedup=1.5).summary().count("BLEU-1") == 1


@pytest.mark.parametrize(
    ("decoded", "frontier", "goal", "expected"),
    [
        (
            DECODED,
            (SLOW, MIDDLE, FAST),
            {"max_loss": 0.01},
            "No decoded setting keeps 99 % or more of full depth's ROUGE-1: take full depth (4.00 of 4 layers on "
            f"average, 10.0 ms per decode step). The closest, {MIDDLE.strategy!r}, keeps 96.0 %.",
        ),
        (
            DECODED,
            (SLOW, MIDDLE, FAST),
            {"speedup": 2.5},
            "No decoded setting is 2.5× as fast as full depth or more: take full depth (4.00 of 4 layers on average, "
            f"10.0 ms per decode step). The closest, {FAST.strategy!r}, is 2.00×.",
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
    assert report.summary().startswith(expected)
    assert report.chosen is report.reference
    report.to_markdown()
    json.loads(report.to_json())
    tuning_figure(report)


def test_the_first_note_says_whether_another_setting_could_change_the_choice(make):
    assert make(DECODED, max_loss=0.05).notes()[0] == (
        "5 different settings were tried, 4 of them scored; 3 are on the frontier of speed and score, 2 of them "
        "decoded: the others could not change the choice."
    )
    assert make({2: DECODED[2]}, max_loss=0.05).notes()[0].endswith("another might be better (--decodes).")
    assert make(DECODED | {0: (0.7, 9.0)}, max_loss=0.05).notes()[0].endswith("3 of them decoded.")


def test_markdown_has_a_line_for_full_depth_and_for_the_frontier(make):
    lines = [line for line in make(DECODED, max_loss=0.05).to_markdown().splitlines() if line.startswith("| `")]
    assert lines == [
        "| `FullDepth()` | 0.2500 | 1.00× | 100.0 | 4.00 | 10.0 | 1.00× | – |",
        f"| `{SLOW.strategy!r}` | 0.5000 | 1.25× | – | 3.00 | – | – | – |",
        f"| `{MIDDLE.strategy!r}` | 0.7500 | 1.50× | 96.0 [50.0, 75.0] | 2.50 | 8.00 | 1.25× | chosen |",
        f"| `{FAST.strategy!r}` | 1.0000 | 2.00× | 50.0 [50.0, 75.0] | 2.50 | 5.00 | 2.00× ‡ | missed |",
    ]


def test_json_holds_every_setting_and_the_run(make):
    report = json.loads(make(DECODED, max_loss=0.05).to_json())
    assert report["chosen"]["name"] == repr(MIDDLE.strategy)
    assert report["goal"] == {"max_loss": 0.05, "speedup": None}
    assert report["run"] == {"seed": 7}
    assert [each["verdict"] for each in report["frontier"]] == [None, True, False]
    assert report["frontier"][1]["decoded"]["percent_of_full_depth"]["value"] == pytest.approx(96)
    assert report["frontier"][0]["decoded"] is None
    assert [each["nats_per_token"] for each in report["settings"]] == [0.5, 0.75, 1.0, 2.0, None]
    assert report["settings"][3]["strategy"]["init_args"]["max_exit"] == 3


def test_a_score_that_is_no_number_is_null(make):
    report = make(DECODED, max_loss=0.05)
    report = replace(report, settings=[*report.settings, replace(SLOW, score=math.nan)])
    assert json.loads(report.to_json())["settings"][-1]["nats_per_token"] is None
    tuning_figure(report)


def test_terminal_shows_the_frontier_and_the_choice(make):
    console = Console(width=120, record=True, file=StringIO())
    make(DECODED, max_loss=0.05).print(console)
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
    make(DECODED, max_loss=0.05).write(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["frontier.png", "tuning.json", "tuning.md"]
    assert (tmp_path / "new" / "frontier.png").read_bytes().startswith(b"\x89PNG")
