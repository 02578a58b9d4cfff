"""The comparison: figures by hand (see conftest), JSON, files, and results with holes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from hsdlab.metrics import bleu_from_statistics
from hsdlab.records import files
from hsdlab.records.bootstrap import bootstrap_interval
from hsdlab.records.comparison import Estimate
from hsdlab.reporting import Comparison, StrategyResult


def no_constants(name):
    raise AssertionError(f"{name} is not JSON")


def rows_of(*results):
    return Comparison(results, run={}).rows


def is_nan(*values):
    return all(map(math.isnan, values))


def test_quality_has_intervals_by_hand(full_depth, hsd):
    row = rows_of(full_depth, hsd)[1]
    assert row.quality["rouge1"] == pytest.approx((0.45, 0.3, 0.6))
    assert row.quality["bleu1"] == pytest.approx((0.375, 0.25, 0.5))  # bb: 2 of 8, aa: 4 of 8
    assert row.output_tokens == pytest.approx((4.0, 2.0, 6.0))


def test_percent_of_baseline_is_paired_by_id(full_depth, hsd):
    baseline, row = rows_of(full_depth, hsd)
    # aa .6/.8, ab .45/.7, bb .3/.6; paired by position instead of id, a would stand against b.
    assert row.percent_of_baseline["rouge1"] == pytest.approx((100 * 0.45 / 0.7, 50.0, 75.0))
    assert row.percent_of_baseline["bleu1"] == pytest.approx((50.0, 50.0, 50.0))
    assert baseline.percent_of_baseline["rouge1"] == pytest.approx((100.0, 100.0, 100.0))


def test_bleu_interval_is_that_of_the_metric_and_holds_the_corpus_figure(full_depth):
    draw = np.random.default_rng(0)
    examples = []
    for index in range(50):
        system, reference = (int(length) for length in draw.integers(8, 15, 2))
        totals = [system - order for order in range(4)]
        correct = [int(draw.binomial(total, share)) for total, share in zip(totals, [0.7, 0.5, 0.4, 0.3], strict=True)]
        examples.append({"id": index, "new_tokens": 9, "scores": {}})
        examples[-1]["bleu_statistics"] = [system, reference, *correct, *totals]
    rows = np.array([each["bleu_statistics"] for each in examples])
    scores = bleu_from_statistics(rows.sum(axis=0).tolist())
    # The order of the examples is that of their ids as text.
    rows = rows[sorted(range(50), key=str)]
    quality = rows_of(replace(full_depth, scores=scores, examples=examples))[0].quality
    for metric in ("bleu1", "bleu4"):
        low, high = bootstrap_interval(rows, lambda s, m=metric: bleu_from_statistics(s.astype(int).tolist())[m])
        assert quality[metric] == (scores[metric], low, high)
        assert low < scores[metric] < high


def test_cost_against_the_baseline(full_depth, hsd, calm):
    rows = rows_of(full_depth, hsd, calm)
    assert [row.speed_up for row in rows] == [1.0, 1.25, 0.8]
    assert [row.average_layers for row in rows] == [4.0, 2.5, 3.0]
    assert [row.percent_of_layers for row in rows] == [100.0, 62.5, 75.0]
    assert [row.saves_layers_but_no_time for row in rows] == [False, False, True]


def test_slower_at_full_depth_saved_nothing(full_depth, calm):
    all_layers = replace(calm, efficiency=calm.efficiency | {"average_layers": 4.0})
    assert not rows_of(full_depth, all_layers)[1].saves_layers_but_no_time


@pytest.mark.parametrize(("step_ms", "too_fast"), [(6.0, False), (5.0, True)])
def test_more_than_the_layers_allow(full_depth, hsd, step_ms, too_fast):
    """2.6 of 4 layers allow a factor of 1.54: 10 / 6 ms is within 10 % of it, 10 / 5 ms is not."""
    row = rows_of(full_depth, replace(hsd, efficiency=hsd.efficiency | {"decode_step_ms": step_ms}))[1]
    assert row.faster_than_its_layers is too_fast


def test_short_label(full_depth, hsd, calm):
    own = replace(calm, name="my_package.every.EveryOther(offset=1)")
    labels = [row.label for row in rows_of(full_depth, hsd, calm, own)]
    assert labels == ["FullDepth()", "HSD(1, 0, 2)", "CALM(0.9, softmax)", "EveryOther(1)"]


def test_full_depth_is_the_baseline_wherever_it_stands(full_depth, hsd):
    report = Comparison([hsd, full_depth], run={})
    assert report.baseline is full_depth
    assert [row.is_baseline for row in report.rows] == [False, True]


def test_without_full_depth_the_first_is_the_baseline_and_the_report_says_so(hsd, calm):
    report = Comparison([hsd, calm], run={})
    assert report.baseline is hsd
    assert not report.has_full_depth
    assert report.rows[1].percent_of_baseline["rouge1"].value == pytest.approx(100 * 0.7 / 0.45)
    assert report.rows[1].speed_up == 8.0 / 12.5
    assert f"FullDepth was not run: the first strategy, {hsd.name} is the baseline (100 %)." in report.to_markdown()
    assert json.loads(report.to_json())["baseline"] == {"name": hsd.name, "is_full_depth": False}


def test_missing_metric_and_cost_are_not_numbers(full_depth, calm):
    report = Comparison([full_depth, calm], run={})
    assert report.metrics == ["rouge1", "bleu1"]
    row = report.rows[1]
    assert math.isnan(row.quality["bleu1"].value)
    assert is_nan(*row.percent_of_baseline["bleu1"][:1])
    assert is_nan(row.cost("cache_peak_mib"), row.cost("prompt_ms"))


def test_per_example_scores_missing_for_one_example_leave_no_interval(full_depth):
    examples = [full_depth.examples[0], full_depth.examples[1] | {"scores": {}}]
    estimate = rows_of(replace(full_depth, examples=examples))[0].quality["rouge1"]
    assert estimate.value == 0.7
    assert is_nan(estimate.low, estimate.high)


@pytest.mark.parametrize("strip", [{"bleu_statistics": None}, {"scores": {"rouge1": None}}])
def test_null_in_a_prediction_file_leaves_no_interval(full_depth, strip):
    examples = [full_depth.examples[0], full_depth.examples[1] | strip]
    metric = "bleu1" if "bleu_statistics" in strip else "rouge1"
    assert is_nan(*rows_of(replace(full_depth, examples=examples))[0].quality[metric][1:])


def test_no_examples_and_no_decode_steps(full_depth, tmp_path):
    empty = replace(
        full_depth,
        scores={"rouge1": math.nan, "bleu1": math.nan},
        efficiency=dict.fromkeys(full_depth.efficiency, math.nan),
        examples=[],
    )
    report = Comparison([empty], run={})
    row = report.rows[0]
    assert is_nan(*row.quality["rouge1"], *row.quality["bleu1"], *row.output_tokens, row.speed_up)
    assert not row.saves_layers_but_no_time
    report.write(tmp_path)
    assert "| `FullDepth()` | – | – | – | – |" in (tmp_path / "comparison.md").read_text()


def test_empty_predictions_score_zero_with_an_interval_and_no_share(full_depth):
    blank = [e | {"prediction": "", "new_tokens": 1, "scores": {"rouge1": 0.0}} for e in full_depth.examples]
    blank = [e | {"bleu_statistics": [0, 4, 0, 0, 0, 0, 0, 0, 0, 0]} for e in blank]
    result = replace(full_depth, scores={"rouge1": 0.0, "bleu1": 0.0}, examples=blank)
    row = rows_of(result)[0]
    assert row.quality == {"rouge1": Estimate(0, 0, 0), "bleu1": Estimate(0, 0, 0)}
    assert is_nan(*row.percent_of_baseline["rouge1"])


def test_no_result_and_other_examples_are_refused(full_depth, hsd):
    with pytest.raises(ValueError, match=r"Got no results to compare\. Expected at least one"):
        Comparison([], run={})
    with pytest.raises(ValueError, match=r"Got 1 examples from HSD\(.*\) and 2 from FullDepth\(\)"):
        Comparison([full_depth, replace(hsd, examples=hsd.examples[:1])], run={})


def test_result_survives_json(full_depth, calm):
    assert StrategyResult.from_json(full_depth.to_json()) == full_depth
    text = calm.to_json()
    json.loads(text, parse_constant=no_constants)
    back = StrategyResult.from_json(text)
    assert math.isnan(back.efficiency["prompt_ms"])
    assert back.efficiency | {"prompt_ms": 0} == calm.efficiency | {"prompt_ms": 0}
    assert (back.scores, back.examples, back.strategy) == (calm.scores, calm.examples, calm.strategy)


def test_json_holds_the_figures_without_examples(full_depth, hsd, calm):
    run = {"seed": 3, "config": {"path": Path("a"), "rate": math.inf}}
    document = json.loads(Comparison([full_depth, hsd, calm], run).to_json(), parse_constant=no_constants)
    assert document["schema_version"] == 1
    assert document["run"] == {"seed": 3, "config": {"path": "a", "rate": None}}
    assert document["baseline"] == {"name": "FullDepth()", "is_full_depth": True}
    assert document["bootstrap"] == {"level": 0.95, "resamples": 1000, "seed": 0}
    entry = document["strategies"][1]
    assert entry["name"] == hsd.name
    assert entry["strategy"] == hsd.strategy
    assert (entry["num_layers"], entry["examples"]) == (4, 2)
    assert entry["quality"]["rouge1"] == pytest.approx({"value": 0.45, "low": 0.3, "high": 0.6})
    assert entry["percent_of_baseline"]["bleu1"] == pytest.approx({"value": 50, "low": 50, "high": 50})
    assert entry["output_tokens"] == {"value": 4, "low": 2, "high": 6}
    assert entry["cost"] == hsd.efficiency | {"percent_of_layers": 62.5}
    assert (entry["speed_up"], entry["saves_layers_but_no_time"]) == (1.25, False)
    assert entry["faster_than_its_layers"] is False
    assert document["strategies"][2]["quality"]["bleu1"]["value"] is None
    assert document["strategies"][2]["cost"]["prompt_ms"] is None
    assert document["strategies"][2]["saves_layers_but_no_time"] is True


def test_write_leaves_exactly_four_files_and_replaces_earlier_ones(full_depth, hsd, tmp_path):
    folder = tmp_path / "new" / "folder"
    Comparison([full_depth], run={}).write(folder)
    report = Comparison([full_depth, hsd], run={})
    report.write(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "comparison.json",
        "comparison.md",
        "depth.png",
        "pareto.png",
    ]
    assert (folder / "comparison.md").read_text(encoding="utf-8") == report.to_markdown()
    assert (folder / "comparison.json").read_text(encoding="utf-8") == report.to_json()
    assert imread(folder / "pareto.png").shape == (960, 2400, 4)


def test_an_interrupted_write_keeps_the_earlier_file(full_depth, hsd, tmp_path, monkeypatch):
    Comparison([full_depth], run={}).write(tmp_path)
    earlier = (tmp_path / "comparison.json").read_text()

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Comparison([full_depth, hsd], run={}).write(tmp_path)
    assert (tmp_path / "comparison.json").read_text() == earlier


def test_only_a_rare_metric_still_makes_a_picture(full_depth, tmp_path):
    Comparison([replace(full_depth, scores={})], run={}).write(tmp_path)
    assert (tmp_path / "pareto.png").stat().st_size > 1000
