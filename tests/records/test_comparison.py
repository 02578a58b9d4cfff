"""The comparison: figures by hand (see tests/results.py), the file, and results with holes."""

import json
import math
from dataclasses import astuple, replace

import numpy as np
import pytest
from matplotlib.image import imread

from hsdlab.costs import Cost
from hsdlab.errors import UserError
from hsdlab.metrics import bleu_from_statistics
from hsdlab.records import files
from hsdlab.records.bootstrap import Estimate, bootstrap_interval
from hsdlab.records.comparison import Comparison, Measured, compare_results
from hsdlab.records.example import Batch, ExampleRecord
from hsdlab.records.provenance import GitState
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.reporting.comparison import comparison_markdown, write_comparison
from tests.markdown_tables import unpadded
from tests.results import RUN, at_step_ms, compared, replace_examples, with_cost


def no_constants(name):
    raise AssertionError(f"{name} is not JSON")


def rows_of(*results):
    return compared(*results).rows


def is_nan(*values):
    return all(map(math.isnan, values))


def write(folder, *results):
    write_comparison(compared(*results), results, folder)


def test_quality_has_intervals_by_hand(full_depth, hsd):
    row = rows_of(full_depth, hsd)[1]
    assert astuple(row.quality["rouge1"]) == pytest.approx((0.45, 0.3, 0.6))
    assert astuple(row.quality["bleu1"]) == pytest.approx((0.375, 0.25, 0.5))  # bb: 2 of 8, aa: 4 of 8
    assert astuple(row.output_tokens) == pytest.approx((4.0, 2.0, 6.0))


def test_percent_of_baseline_is_paired_by_id(full_depth, hsd):
    baseline, row = rows_of(full_depth, hsd)
    # aa .6/.8, ab .45/.7, bb .3/.6; paired by position instead of id, a would stand against b.
    assert astuple(row.percent_of_baseline["rouge1"]) == pytest.approx((100 * 0.45 / 0.7, 50.0, 75.0))
    assert astuple(row.percent_of_baseline["bleu1"]) == pytest.approx((50.0, 50.0, 50.0))
    assert astuple(baseline.percent_of_baseline["rouge1"]) == pytest.approx((100.0, 100.0, 100.0))


def test_bleu_interval_is_that_of_the_metric_and_holds_the_corpus_figure(full_depth):
    draw = np.random.default_rng(0)
    examples = []
    for index in range(50):
        system, reference = (int(length) for length in draw.integers(8, 15, 2))
        totals = [system - order for order in range(4)]
        correct = [int(draw.binomial(total, share)) for total, share in zip(totals, [0.7, 0.5, 0.4, 0.3], strict=True)]
        statistics = (system, reference, *correct, *totals)
        examples.append(ExampleRecord(str(index), "", (), 9, None, bleu_statistics=statistics))
    rows = np.array([each.bleu_statistics for each in examples])
    scores = bleu_from_statistics(rows.sum(axis=0).tolist())
    # The order of the examples is that of their ids as text.
    rows = rows[sorted(range(50), key=str)]
    quality = rows_of(replace(full_depth, scores=scores, examples=tuple(examples)))[0].quality
    for metric in ("bleu1", "bleu4"):
        low, high = bootstrap_interval(rows, lambda s, m=metric: bleu_from_statistics(s.astype(int).tolist())[m])
        assert quality[metric] == Estimate(scores[metric], low, high)
        assert low < scores[metric] < high


def test_cost_against_the_baseline(full_depth, hsd, calm):
    rows = rows_of(full_depth, hsd, calm)
    assert [row.speed_up for row in rows] == [1.0, 1.25, 0.8]
    assert [row.average_layers for row in rows] == [4.0, 2.5, 3.0]
    assert [row.percent_of_layers for row in rows] == [100.0, 62.5, 75.0]
    assert [row.saves_layers_but_no_time for row in rows] == [False, False, True]


def test_a_row_holds_the_counts_behind_its_figures(full_depth, hsd):
    row = rows_of(full_depth, hsd)[1]
    assert row.cost == hsd.cost
    assert row.figures == hsd.cost.figures()


def test_slower_at_full_depth_saved_nothing(full_depth, calm):
    all_layers = with_cost(calm, executed_layers=400)
    assert not rows_of(full_depth, all_layers)[1].saves_layers_but_no_time


@pytest.mark.parametrize(("step_ms", "too_fast"), [(6.0, False), (5.0, True)])
def test_more_than_the_layers_allow(full_depth, hsd, step_ms, too_fast):
    """2.6 of 4 layers allow a factor of 1.54: 10 / 6 ms is within 10 % of it, 10 / 5 ms is not."""
    row = rows_of(full_depth, at_step_ms(hsd, step_ms))[1]
    assert row.faster_than_its_layers is too_fast


def in_batches(result, *decode_s):
    """The result with one example a batch; a batch takes so many seconds for 10 decode steps."""
    examples = [
        replace(example, batch=Batch(number, 1, Cost(num_layers=4, decode_passes=10, decode_s=seconds)))
        for number, (example, seconds) in enumerate(zip(result.examples, decode_s, strict=True))
    ]
    return replace(result, examples=tuple(examples))


def test_the_speed_up_has_an_interval_over_batches_that_both_decoded(full_depth, hsd):
    """A draw is both batches, or one of them twice: the ends are the two ratios."""
    results = [in_batches(full_depth, 1.0, 3.0), in_batches(hsd, 0.5, 2.25)]
    full, row = compare_results(results, RUN, in_turn=True).rows
    assert row.speed_up_interval == pytest.approx((3 / 2.25, 1.0 / 0.5))
    assert full.speed_up_interval is None  # the baseline
    _, alone = compare_results([results[0], hsd], RUN, in_turn=True).rows
    assert alone.speed_up_interval is None  # no batches
    assert all(each.speed_up_interval is None for each in rows_of(*results))  # one after the other: the machine drifts


def test_short_label(full_depth, hsd, calm):
    own = replace(calm, name="my_package.every.EveryOther(offset=1)")
    rows = rows_of(full_depth, hsd, calm, own)
    assert [row.label for row in rows] == ["FullDepth", "HSD(1, 0, 2)", "CALM(0.9, softmax)", "EveryOther(1)"]
    (row,) = rows_of(replace(hsd, name="HSD(num_skipped=1, min_exit=0)", resolved=hsd.name))
    assert row.label == "HSD(1, 0, 2)"


def test_rows_of_several_runs_carry_their_names(full_depth, hsd):
    rows = compare_results([full_depth, hsd, full_depth], RUN, ["plain", "plain", "tuned"]).rows
    assert [row.run for row in rows] == ["plain", "plain", "tuned"]
    assert rows[1].label == "plain: HSD(1, 0, 2)"
    assert rows[2].label == "tuned: FullDepth"
    assert [row.is_baseline for row in compare_results([full_depth, hsd], RUN).rows] == [True, False]


def test_when_and_by_which_commit_a_row_was_measured():
    committed = replace(RUN, git=GitState("ab" * 20, True))
    assert Measured.by(committed) == Measured("2026-01-02T03:04:05+00:00", "ab" * 20, True)
    assert Measured.by(RUN) == Measured("2026-01-02T03:04:05+00:00", None, None)


def test_full_depth_is_the_baseline_wherever_it_stands(full_depth, hsd):
    found = compared(hsd, full_depth)
    assert found.baseline.name == full_depth.name
    assert found.has_full_depth
    assert [row.is_baseline for row in found.rows] == [False, True]


def test_without_full_depth_the_first_is_the_baseline_and_the_report_says_so(hsd, calm):
    found = compared(hsd, calm)
    assert found.baseline.name == hsd.name
    assert not found.has_full_depth
    assert found.rows[1].percent_of_baseline["rouge1"].value == pytest.approx(100 * 0.7 / 0.45)
    assert found.rows[1].speed_up == 8.0 / 12.5
    text = comparison_markdown(found)
    assert "FullDepth was not run: the first strategy, HSD(1, 0, 2) is the baseline (100 %)." in text


def test_missing_metric_and_cost_are_not_numbers(full_depth, calm):
    found = compared(full_depth, calm)
    assert found.metrics == ["rouge1", "bleu1"]
    row = found.rows[1]
    assert is_nan(row.quality["bleu1"].value)
    assert is_nan(row.percent_of_baseline["bleu1"].value)
    assert is_nan(row.figure("compute_layers"), row.figure("prompt_ms"), row.figure("no such figure"))
    assert is_nan(rows_of(full_depth, replace(calm, cost=Cost()))[1].figure("cache_peak_mib"))


def test_an_oracle_has_layers_and_no_time(full_depth, hsd):
    row = rows_of(full_depth, replace(hsd, is_oracle=True))[1]
    assert is_nan(row.speed_up, *map(row.figure, ("decode_step_ms", "tokens_per_second", "prompt_ms")))
    assert (row.average_layers, row.figure("flops_per_token")) == (2.5, 1.75e9)


def test_per_example_scores_missing_for_one_example_leave_no_interval(full_depth):
    examples = (full_depth.examples[0], replace(full_depth.examples[1], scores={}))
    estimate = rows_of(replace(full_depth, examples=examples))[0].quality["rouge1"]
    assert estimate.value == 0.7
    assert is_nan(estimate.low, estimate.high)


@pytest.mark.parametrize("strip", [{"bleu_statistics": None}, {"scores": {"rouge1": math.nan}}])
def test_what_an_example_lacks_leaves_no_interval(full_depth, strip):
    examples = (full_depth.examples[0], replace(full_depth.examples[1], **strip))
    metric = "bleu1" if "bleu_statistics" in strip else "rouge1"
    estimate = rows_of(replace(full_depth, examples=examples))[0].quality[metric]
    assert is_nan(estimate.low, estimate.high)


def test_no_examples_and_no_decode_steps(full_depth, tmp_path):
    empty = replace(full_depth, scores={"rouge1": math.nan, "bleu1": math.nan}, cost=Cost(num_layers=4), examples=())
    row = rows_of(empty)[0]
    figures = (row.quality["rouge1"], row.quality["bleu1"], row.output_tokens)
    assert is_nan(*(value for figure in figures for value in astuple(figure)), row.speed_up)
    assert not row.saves_layers_but_no_time
    write(tmp_path, empty)
    text = unpadded((tmp_path / "comparison.md").read_text(encoding="utf-8"))
    assert "| `FullDepth` | – | – | – | – |" in text


def test_empty_predictions_score_zero_with_an_interval_and_no_share(full_depth):
    statistics = (0, 4, 0, 0, 0, 0, 0, 0, 0, 0)
    blank = replace_examples(
        full_depth, prediction="", new_tokens=1, scores={"rouge1": 0.0}, bleu_statistics=statistics
    )
    row = rows_of(replace(blank, scores={"rouge1": 0.0, "bleu1": 0.0}))[0]
    assert row.quality == {"rouge1": Estimate(0, 0, 0), "bleu1": Estimate(0, 0, 0)}
    assert is_nan(*astuple(row.percent_of_baseline["rouge1"]))


def test_no_result_and_other_examples_are_refused(full_depth, hsd):
    with pytest.raises(UserError, match=r"Got no results to compare\. Expected at least one"):
        compared()
    with pytest.raises(UserError, match=r"Got 1 examples from HSD\(.*\) and 2 from FullDepth\(\)"):
        compared(full_depth, replace(hsd, examples=hsd.examples[:1]))


def test_result_survives_json(full_depth, calm):
    assert StrategyResult.from_json(full_depth.to_json()) == full_depth
    odd = replace(calm, scores={"rouge1": math.nan, "rouge2": math.inf})
    text = odd.to_json()
    json.loads(text, parse_constant=no_constants)
    back = StrategyResult.from_json(text)
    assert math.isnan(back.scores["rouge1"])
    assert back.scores["rouge2"] == math.inf
    assert replace(back, scores={}) == replace(odd, scores={})


def test_the_examples_have_a_file_of_their_own(full_depth):
    assert full_depth.without_examples() == replace(full_depth, examples=())


def test_json_holds_the_figures_without_examples(full_depth, hsd, calm):
    found = compared(full_depth, hsd, calm, path="a", rate=math.inf)
    document = json.loads(found.to_json(), parse_constant=no_constants)
    assert (document["kind"], document["schema_version"]) == ("comparison", 2)
    assert (document["run"]["seed"], document["run"]["config"]) == (7, {"path": "a", "rate": None})
    assert document["not_finite"]["/run/config/rate"] == "inf"
    assert [row["is_baseline"] for row in document["rows"]] == [True, False, False]
    assert document["bootstrap"] == {"level": 0.95, "resamples": 1000, "seed": 0}
    entry = document["rows"][1]
    assert entry["name"] == hsd.name
    assert entry["strategy"] == {"class_path": "hsdlab.strategies.HSD", "init_args": {"num_skipped": 1}}
    assert (entry["num_layers"], entry["examples"]) == (4, 2)
    assert entry["quality"]["rouge1"] == pytest.approx({"value": 0.45, "low": 0.3, "high": 0.6})
    assert entry["percent_of_baseline"]["bleu1"] == pytest.approx({"value": 50, "low": 50, "high": 50})
    assert entry["output_tokens"] == {"value": 4, "low": 2, "high": 6}
    assert entry["figures"] == hsd.cost.figures()
    assert entry["cost"]["executed_layers"] == 250
    assert entry["speed_up"] == 1.25
    assert document["rows"][2]["quality"]["bleu1"]["value"] is None
    assert document["not_finite"]["/rows/2/quality/bleu1/value"] == "nan"
    assert document["rows"][2]["figures"]["prompt_ms"] is None


def test_write_leaves_exactly_four_files_and_replaces_earlier_ones(full_depth, hsd, tmp_path):
    folder = tmp_path / "new" / "folder"
    write(folder, full_depth)
    write(folder, full_depth, hsd)
    found = compared(full_depth, hsd)
    assert sorted(path.name for path in folder.iterdir()) == [
        "comparison.json",
        "comparison.md",
        "depth.png",
        "pareto.png",
    ]
    assert (folder / "comparison.md").read_text(encoding="utf-8") == comparison_markdown(found)
    assert (folder / "comparison.json").read_text(encoding="utf-8") == found.to_json()
    assert Comparison.read(folder / "comparison.json") == found
    assert imread(folder / "pareto.png").shape == (960, 2400, 4)


def test_an_interrupted_write_keeps_the_earlier_file(full_depth, hsd, tmp_path, monkeypatch):
    write(tmp_path, full_depth)
    earlier = (tmp_path / "comparison.json").read_text()

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, full_depth, hsd)
    assert (tmp_path / "comparison.json").read_text() == earlier


def test_only_a_rare_metric_still_makes_a_picture(full_depth, tmp_path):
    write(tmp_path, replace(full_depth, scores={}))
    assert (tmp_path / "pareto.png").stat().st_size > 1000
