"""What hsdlab 0.1 wrote is read, or refused in a sentence."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from benchmarks.early_exit_data import ChosenThreshold
from hsdlab.costs import Cost
from hsdlab.errors import RunError
from hsdlab.records.bench import BenchResult
from hsdlab.records.bootstrap import Estimate
from hsdlab.records.calibration import CalibrationResult
from hsdlab.records.comparison import Comparison
from hsdlab.records.example import ExampleRecord
from hsdlab.records.inspection import InspectionResult
from hsdlab.records.predictions import PredictionFile
from hsdlab.records.provenance import RunInfo
from hsdlab.records.tuning import DecodedSetting, TuningResult
from tests import version_1_samples as v1

RESULTS = Path(__file__).parents[2] / "docs" / "results"
FILES = sorted(path.name for path in RESULTS.glob("*.json"))


def read(kind, content):
    return kind.from_json(json.dumps(content))


@pytest.mark.parametrize("name", FILES)
def test_the_committed_results_are_read(name):
    kinds = {"_bench": BenchResult, "_tune": TuningResult, "_calibration": ChosenThreshold}
    kind = next((kinds[part] for part in kinds if part in name), Comparison)
    record = kind.read(RESULTS / name)
    assert record.run.git.commit in (RESULTS / name).read_text(encoding="utf-8")
    assert repr(kind.from_json(record.to_json())) == repr(record)
    if kind is BenchResult:
        for cell in record.cells:
            assert cell.sides[1].name == "FullDepth"
            assert cell.sides[1].speed_up.median == 1
    elif kind is ChosenThreshold:
        assert record.tests
    else:
        comparison = record if kind is Comparison else record.comparison
        assert comparison.baseline.name == "FullDepth()"
        assert comparison.baseline.average_layers == comparison.baseline.num_layers
        assert all(1 < row.average_layers <= row.num_layers for row in comparison.rows)


def test_there_are_committed_results_of_each_kind():
    assert {name.removesuffix(".json").rpartition("_")[2] for name in FILES} >= {"bench", "tune", "greedy", "beam4"}


def test_a_comparison():
    found = read(Comparison, v1.COMPARISON)
    full, hsd = found.rows
    assert [(row.number, row.name, row.is_baseline) for row in found.rows] == [
        (1, "FullDepth()", True),
        (2, "HSD()", False),
    ]
    assert hsd.strategy.class_path == "hsdlab.strategies.HSD"
    assert repr(hsd.quality) == repr({"rouge1": Estimate(0.4, 0.4, math.nan)})
    assert hsd.percent_of_baseline["rouge1"].value == 50
    assert (full.figure("decode_step_ms"), full.speed_up, hsd.average_layers) == (10, 1, 2)
    assert "percent_of_layers" not in hsd.figures
    assert hsd.percent_of_layers == 50
    assert all(map(math.isnan, (hsd.speed_up, hsd.figure("decode_step_ms"), hsd.figure("bytes_per_token"))))
    assert full.cost is hsd.cost is None  # the counts behind the figures were not kept
    assert found.run.git.dirty


def test_a_tuning():
    found = read(TuningResult, v1.TUNING)
    assert (found.goal.max_loss, found.goal.speedup, found.metric, found.scored_texts) == (0.02, None, "bleu4", 1)
    assert [each.nats_per_token for each in found.settings] == [0.5, None, 0.75]
    assert found.frontier == (0, 2)
    assert found.decoded == (DecodedSetting(1, True),)
    assert found.verdicts == [None, True]
    assert (found.chosen, found.chosen_row.name, found.chosen_row.speed_up) == (1, "HSD(2)", 1.25)
    assert found.share(found.chosen_row) == 0.99
    assert found.chosen_row.percent_of_baseline["bleu4"] == Estimate(99, 98, 100)
    assert found.reference_nats_per_token == 0.25
    assert found.comparison.baseline.quality["bleu4"].value == 0.5


def test_a_bench():
    found = read(BenchResult, v1.BENCH)
    assert (found.model.class_name, found.model.parameters) == ("Llama", 7)
    assert found.environment.load_average_before is None
    assert found.environment.load_average_after == (1, 2, 3)
    (cell,) = found.cells
    assert (cell.batch_size, cell.num_beams, cell.dtype, cell.prompt_tokens) == (1, 1, found.model.dtype, (20,))
    assert found.planned_cells == 1
    (side,) = cell.sides
    assert (side.name, side.average_layers, side.speed_up.high, side.decode_passes) == (
        *("plain generate", None, 3),
        ((4,),),
    )


def test_an_inspection():
    found = read(InspectionResult, v1.INSPECTION)
    assert found.model.class_name == "Llama"
    assert repr(found.loss) == repr(Estimate(1.5, 1.5, math.nan))
    assert math.isnan(found.saturated_layers.value)
    assert found.cheapest_first == (1, 0)
    assert [(layer.layer, layer.dropped_loss.value) for layer in found.layers] == [(0, 0), (1, 0.25)]


def test_a_run_without_a_version():
    run = read(RunInfo, v1.RUN)
    assert run.versions == {"hsdlab": "0.1.0", "bert-score": None}
    assert (run.seed, run.subcommand, run.examples, run.earlier) == (0, "", None, ())
    assert run.machine.memory_gib is None


def test_a_prediction_with_the_old_keys_of_its_batch():
    record = ExampleRecord.from_line(json.dumps(v1.prediction("a", 2.0)).encode())
    assert (record.id, record.references, record.layers) == ("a", ("a b c e",), ("0,3",) * 3)
    assert (record.batch.number, record.batch.rows) == (0, 2)
    assert math.isnan(record.batch.cost.bytes_read)
    assert dataclasses.replace(record.batch.cost, bytes_read=0) == Cost(
        num_layers=4,
        prompt_passes=1,
        decode_passes=3,
        decode_steps=6,
        executed_layers=12,
        computed_steps=7,
        computed_layers=14,
        flops=6e9,
        prompt_s=0.02,
        decode_s=0.03,
        wall_s=0.05,
        peak_cache_bytes=2**20,
    )


def test_a_file_of_old_predictions_goes_on(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(v1.prediction(name, 2.0)) + "\n" for name in "ab"))
    batches = PredictionFile(path).read()
    assert [record.id for record in batches[0]] == ["a", "b"]
    assert [json.loads(line)["schema_version"] for line in path.read_text().splitlines()] == [2, 2]


def test_a_calibration_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"schema_version": 1, "run": v1.RUN, "chosen": {}, "tests": []}))
    with pytest.raises(RunError) as error:
        CalibrationResult.read(path)
    assert str(error.value) == (
        f"{path}: got a calibration of schema version 1; this version of hsdlab reads version 2. Create it "
        "again, or read it with the version of hsdlab that wrote it."
    )
