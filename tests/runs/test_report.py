"""`report` draws finished runs anew from their files alone: folders made by hand, with no model and no data."""

import json
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hsdlab.cli import main
from hsdlab.errors import RunError, UserError
from hsdlab.records.bench import BenchResult
from hsdlab.records.calibration import CalibrationResult, CalibrationTest
from hsdlab.records.comparison import Comparison, compare_results
from hsdlab.records.example import Batch
from hsdlab.records.exit_quality import ExitQuality
from hsdlab.records.inspection import InspectionResult
from hsdlab.records.predictions import PredictionFile
from hsdlab.records.run_folder import prediction_file
from hsdlab.records.tuning import TuningResult
from hsdlab.reporting import tensorboard
from hsdlab.reporting.bench import write_bench
from hsdlab.reporting.calibration import write_calibration
from hsdlab.reporting.comparison import write_comparison
from hsdlab.reporting.exit_quality import write_exit_quality
from hsdlab.reporting.inspection import write_inspection
from hsdlab.reporting.tuning import write_tuning
from hsdlab.runs.report import report
from tests import version_1_samples as v1
from tests.results import RUN, compared, replace_examples


@pytest.fixture
def results(recorded):
    """Both strategies, each decoded in one batch."""
    return [replace_examples(each, batch=Batch(0, 2, each.cost)) for each in recorded]


def comparison_folder(folder, *results):
    """What `compare` leaves."""
    found = compared(*results)
    write_comparison(found, results, folder)
    for row, result in zip(found.rows, results, strict=True):
        PredictionFile(prediction_file(folder, row.name, row.number)).append(result.examples)
    return folder


def result_folder(folder, result):
    """What `test` leaves."""
    folder.mkdir()
    replace(result.without_examples(), run=RUN).write(folder / "result.json")
    PredictionFile(prediction_file(folder)).append(result.examples)
    return folder


def calibration(full_depth, hsd):
    test = CalibrationTest((0.0, 0.5), 0.5, 0.9, False)
    return CalibrationResult(
        *(RUN, 0.1, 0.05, "hoeffding", "risk", "rouge1", (hsd.name,), ("a", "b"), 150, (test,)),
        compared(full_depth, hsd),
    )


def old(kind, content):
    return kind.from_json(json.dumps(content))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tags_of(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events.Tags(), {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}


@pytest.mark.usefixtures("drawn_pictures")
@pytest.mark.parametrize("kind", ["calibration", "tuning", "bench", "inspection", "exit classifier"])
def test_a_folder_of_each_kind_is_drawn_byte_for_byte(kind, full_depth, hsd, tmp_path):
    tenths = ((0.1, 0.9), (0.2, 0.8))
    quality = ExitQuality((0.5, 1.0), (0.5, 1.0), (0.5, float("nan")), (0.1, 0.2), tenths, tenths, tenths, RUN)
    record, write = {
        "calibration": (calibration(full_depth, hsd), write_calibration),
        "tuning": (old(TuningResult, v1.TUNING), write_tuning),
        "bench": (old(BenchResult, v1.BENCH), write_bench),
        "inspection": (old(InspectionResult, v1.INSPECTION), write_inspection),
        "exit classifier": (quality, write_exit_quality),
    }[kind]
    write(record, tmp_path)
    before = contents(tmp_path)
    for path in tmp_path.iterdir():
        if path.suffix != ".json":
            path.write_bytes(b"spoiled")
    assert repr(report([tmp_path])) == repr(record)
    assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_pictures")
def test_a_comparison_is_drawn_byte_for_byte(results, tmp_path, capsys):
    folder = comparison_folder(tmp_path / "run", *results)
    before = contents(folder)
    for name in ("comparison.md", "pareto.png", "depth.png"):
        (folder / name).unlink()
    assert report([folder]) == compared(*results)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert f"Drawn again in {folder}." in capsys.readouterr().out
    events = folder / "tensorboard"
    names = ["01_FullDepth", "02_HSD(1,0,2)"]
    assert sorted(path.name for path in events.iterdir()) == sorted([*names, "comparison"])
    expected, found = tmp_path / "expected", compared(*results)
    tensorboard.write_strategy(found, found.rows[1], results[1], expected / "hsd")
    tensorboard.write_comparison(found, results, write_comparison(found, results, expected), expected / "comparison")
    assert tags_of(events / names[1]) == tags_of(expected / "hsd")
    assert tags_of(events / "comparison") == tags_of(expected / "comparison")


def test_the_run_of_one_strategy(results, tmp_path):
    folder = result_folder(tmp_path / "run", results[1])
    assert report([folder]) == replace(results[1], run=RUN)
    _, scalars = tags_of(folder / "tensorboard" / "HSD(1,0,2)")
    assert scalars["quality/rouge1"] == pytest.approx(0.45)
    assert scalars["cost/average_layers"] == 2.5


def test_several_runs_make_one_comparison(results, tmp_path):
    full, hsd = results
    plain = comparison_folder(tmp_path / "plain", full, hsd)
    tuned = result_folder(tmp_path / "tuned", hsd)
    output = tmp_path / "both"
    found = report({"plain": plain, "skip-aware": tuned}, output)
    assert [(row.run, row.name) for row in found.rows] == [
        *(("plain", full.name), ("plain", hsd.name)),
        ("skip-aware", hsd.name),
    ]
    assert found.baseline is found.rows[0]
    assert found.rows[2].speed_up == 1.25
    assert found.run.config == {"runs": {"plain": str(plain), "skip-aware": str(tuned)}}
    assert Comparison.read(output / "comparison.json") == found
    text = (output / "comparison.md").read_text(encoding="utf-8")
    assert "`skip-aware: HSD(1, 0, 2)`" in text
    assert "The rows come from several runs." in text
    assert found.rows == compare_results([full, hsd, hsd], RUN, ["plain", "plain", "skip-aware"]).rows
    assert [row.run for row in report([plain, tuned], output).rows] == ["plain", "plain", "tuned"]


@pytest.mark.slow
def test_names_are_as_much_of_the_path_as_tells_them_apart(results, tmp_path):
    folders = [comparison_folder(tmp_path / name / "run", results[0]) for name in "ab"]
    assert [row.run for row in report(folders, tmp_path / "both").rows] == ["a/run", "b/run"]


def test_other_examples_are_refused(results, tmp_path):
    full, hsd = results
    other = replace(hsd, examples=tuple(replace(each, id=each.id + "x") for each in hsd.examples))
    folders = [comparison_folder(tmp_path / "a", full), result_folder(tmp_path / "b", other)]
    with pytest.raises(UserError, match="Expected the same examples from each strategy"):
        report(folders, tmp_path / "both")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "comparison.json").write_text("{"),
            "comparison.json: expected a comparison as a JSON object",
        ),
        (lambda folder: (folder / "comparison.json").write_text("{}"), "comparison.json: expected a whole comparison"),
        (lambda folder: next((folder / "predictions").iterdir()).unlink(), "is missing: the report needs what was"),
        (lambda folder: next((folder / "predictions").iterdir()).write_text("{}\n"), "line 1: expected a prediction"),
        (lambda folder: next((folder / "predictions").iterdir()).write_text(""), "a part of it is missing"),
        (
            lambda folder: (folder / "comparison.json").unlink(),
            "holds no finished run: expected one of",
        ),
    ],
)
def test_a_damaged_folder_is_one_sentence(spoil, message, results, tmp_path, capsys):
    folder = comparison_folder(tmp_path / "run", results[0])
    spoil(folder)
    with pytest.raises(RunError, match=message):
        report([folder])
    with pytest.raises(SystemExit) as end:
        main(["report", str(folder)])
    assert end.value.code not in (0, None)
    assert message in " ".join(f"{end.value.code} {capsys.readouterr().err}".split())


def test_folders_that_make_no_comparison(results, tmp_path):
    folder = comparison_folder(tmp_path / "run", results[0])
    with pytest.raises(UserError, match="Got a run folder twice"):
        report([folder, folder], tmp_path / "both")
    with pytest.raises(UserError, match="Got no run folder to report"):
        report([])
    with pytest.raises(UserError, match="give the folder for it with --output"):
        report({"a": folder, "b": folder})
    with pytest.raises(RunError, match="nowhere holds no finished `test` or `compare` run"):
        report([folder, tmp_path / "nowhere"], tmp_path / "both")


def test_a_folder_of_version_1(tmp_path):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "comparison.json").write_text(json.dumps(v1.COMPARISON))
    for number, (name, layers) in enumerate({"FullDepth()": 4.0, "HSD()": 2.0}.items(), start=1):
        lines = [json.dumps(v1.prediction(example, layers)) + "\n" for example in "ab"]
        prediction_file(tmp_path, name, number).write_text("".join(lines))
    found = report([tmp_path])
    assert [(row.name, row.average_layers) for row in found.rows] == [("FullDepth()", 4), ("HSD()", 2)]
    assert found.rows[1].figure("decode_step_ms") == 10  # 30 ms in three passes, from the counts of the predictions
    assert found.rows[1].quality["rouge1"].value == 0.4
    assert json.loads((tmp_path / "comparison.json").read_text())["schema_version"] == 2


@pytest.mark.slow
def test_the_command_line(results, tmp_path, capsys):
    folders = [comparison_folder(tmp_path / name, results[0]) for name in "ab"]
    main(["report", f"first={folders[0]}", f"second={folders[1]}", "--output", str(tmp_path / "both")])
    rows = Comparison.read(tmp_path / "both" / "comparison.json").rows
    assert [row.run for row in rows] == ["first", "second"]
    with pytest.raises(SystemExit):
        main(["report", f"first={folders[0]}", str(folders[1])])
    assert "give a NAME= for each run or for none" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["report", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "Draw the tables, pictures and TensorBoard events of a finished run again" in text
    assert "NAME=FOLDER" in text
