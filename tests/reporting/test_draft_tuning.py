"""The report of a tuning of drafts and its picture, on drafts whose figures are known."""

import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from hsdlab import HSD, StaticDepth, Verified
from hsdlab.records.draft_tuning import DraftPrediction, DraftTuningResult, MeasuredDraft, TunedDraft
from hsdlab.records.strategy import StrategyConfig
from hsdlab.reporting.draft_tuning import draft_tuning_markdown, notes, print_draft_tuning, summary, write_draft_tuning
from hsdlab.reporting.draft_tuning_figure import draft_tuning_figure
from tests.markdown_tables import unpadded
from tests.results import RUN, at_step_ms, compared, with_cost


def tried(draft, layers, *predictions):
    return TunedDraft(repr(draft), StrategyConfig.of(draft.config()), layers, predictions)


FIRST = tried(
    HSD(1, 0, 2), 2.5, DraftPrediction(2, None, 0.6, 0.8, 2.25, 1.25), DraftPrediction(4, 8000, 0.4, 0.75, 3.0, 1.5)
)
SECOND = tried(StaticDepth(2), 2.0, DraftPrediction(1, None, 0.5, 0.5, 1.5, 0.9))
PLACES = {(0, 1): Verified(HSD(1, 0, 2), 4, draft_vocabulary=8000), (1, 0): Verified(StaticDepth(2), 1)}


@pytest.fixture
def make(full_depth, hsd):
    """Make the result of what was measured: (draft, prediction) to the time of a step, of full depth's 10 ms."""

    def call(measured, other_texts=0, drafts=(FIRST, SECOND)):
        results = [
            replace(
                at_step_ms(with_cost(hsd, verifications=40, draft_tokens=100, accepted_drafts=70), step_ms),
                name=repr(PLACES[place]),
                resolved=repr(PLACES[place]),
                strategy=StrategyConfig.of(PLACES[place].config()),
            )
            for place, step_ms in measured.items()
        ]
        comparison = compared(full_depth, *results)
        faster = [place for place, row in enumerate(comparison.rows[1:]) if row.speed_up > 1]
        return DraftTuningResult(
            run=RUN,
            scored_texts=2,
            drafts=drafts,
            measured=tuple(MeasuredDraft(*place, other_texts) for place in measured),
            comparison=comparison,
            chosen=max(faster, key=lambda place: comparison.rows[place + 1].speed_up, default=None),
        )

    return call


FASTER = {(0, 1): 8.0, (1, 0): 5.0}
SLOWER = {(0, 1): 12.5, (1, 0): 20.0}


def test_the_summary_names_the_fastest_measured(make):
    assert summary(make(FASTER)) == (
        f"{PLACES[1, 0]!r} is the fastest measured: 2.00× full depth's speed on 2 validation examples, 70% of the "
        "drafted tokens accepted."
    )


def test_the_summary_says_where_no_draft_pays(make):
    result = make(SLOWER)
    assert result.chosen is None
    assert result.chosen_row is result.comparison.baseline
    assert summary(result) == (
        f"No draft pays on this model: take full depth. The closest, {PLACES[0, 1]!r}, is 0.80× as fast. A model that "
        "was trained to skip layers drafts better: docs/training.md."
    )
    assert summary(make({})) == "No setting tried skips a layer: take full depth."


def test_the_summary_warns_of_an_interval_that_reaches_down_to_full_depth(make):
    result = make(FASTER)
    full, first, second = result.comparison.rows
    wide = replace(result.comparison, rows=(full, first, replace(second, speed_up_interval=(0.9, 2.1))))
    assert "Its interval reaches down" in summary(replace(result, comparison=wide))
    narrow = replace(result.comparison, rows=(full, first, replace(second, speed_up_interval=(1.9, 2.1))))
    assert "Its interval" not in summary(replace(result, comparison=narrow))


def test_markdown_has_a_line_for_full_depth_and_for_each_measured_draft(make):
    lines = [line for line in unpadded(draft_tuning_markdown(make(FASTER))).splitlines() if line.startswith("| `")]
    assert lines == [
        "| `FullDepth()` | – | – | 4 | – | – | 1.00× | 1.00× | – |",
        f"| `{FIRST.name}` | 4 | 8000 | 2.50 | 70 (75) | 2.50 (3.00) | 1.50× | 1.25× | – |",
        f"| `{SECOND.name}` | 1 | all | 2.00 | 70 (50) | 2.50 (1.50) | 0.90× | 2.00× | chosen |",
    ]


def test_the_notes_say_what_was_predicted_and_whether_a_text_changed(make):
    said = " ".join(notes(make(FASTER)))
    assert "2 different drafts were tried, 2 with their lengths measured" in said
    assert "All 4 texts of the drafts are those of full depth." in said
    assert "No draft was predicted to be faster" not in said
    assert "2 of 4 texts of the drafts differ from full depth's" in " ".join(notes(make(FASTER, other_texts=1)))
    slow = replace(FIRST, predictions=(FIRST.predictions[0], replace(FIRST.predictions[1], speed_up=0.95)))
    said = " ".join(notes(make(SLOWER, drafts=(slow, SECOND))))
    assert "No draft was predicted to be faster than full depth, the most is 0.95×. The best were measured" in said


def test_the_record_is_read_back(make, tmp_path):
    result = make(FASTER)
    write_draft_tuning(result, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tuning.md", "tuning.json", "drafts.png"}
    assert DraftTuningResult.read(tmp_path / "tuning.json") == result
    document = json.loads((tmp_path / "tuning.json").read_text(encoding="utf-8"))
    assert (document["kind"], document["chosen"]) == ("tuning of drafts", 1)


def test_terminal_shows_the_drafts_and_the_choice(make):
    console = Console(width=120, record=True, file=StringIO())
    print_draft_tuning(make(FASTER), console)
    text = " ".join(console.export_text().split())
    assert "Verified drafts, on 2 examples" in text
    assert "is the fastest measured: 2.00×" in text


def points(axes):
    return [tuple(line.get_xydata()[0]) for line in axes.lines if len(line.get_xydata()) == 1]


def test_the_picture_has_all_drafts_left_and_the_measured_right(make):
    figure = draft_tuning_figure(make(FASTER))
    left, right = figure.axes
    assert points(left) == [(2.5, 1.5), (2.0, 0.9), (2.5, 1.5), (2.0, 0.9)]  # all, then the measured ones
    assert points(right) == [(1.5, 1.25), (0.9, 2.0)]
    assert [text.get_text() for text in right.texts] == ["1", "2"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["HSD", "StaticDepth", "1  Verified(HSD(1, 0, 2), 4, 8000)"]
    draft_tuning_figure(make({}))  # draws where nothing was measured
