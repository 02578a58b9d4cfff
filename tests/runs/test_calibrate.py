"""`evaluate.py calibrate` on a tiny model: what it decodes, writes, refuses and goes on with."""

import json
import signal
import warnings

import pytest
import yaml

import hsdlab.modules.decode
from hsdlab import CALM, HSD, FullDepth, OracleExit
from hsdlab.metrics import rouge_scores
from hsdlab.records.calibration import CalibrationResult
from hsdlab.reporting.calibration import guarantee
from hsdlab.runs.calibrate import check_calibration
from tests.runs.test_resume import interrupt, lines, without_times
from tests.tiny_runs import options, read_records, refusal, run, without_costs, write_examples

NEVER_EXITS = "{class_path: CALM, init_args: {threshold: 1.0}}"
SURE = "{class_path: CALM, init_args: {threshold: 0.999}}"
ONE_LAYER = "{class_path: HSD, init_args: {num_skipped: 2, max_exit: 1}}"
LATER = "{class_path: SkipDecode, init_args: {min_exit: 1, max_exit: 2}}"
LIST = f"--strategies=[{NEVER_EXITS}, {SURE}, {ONE_LAYER}, {LATER}]"
EXAMPLES = 40


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The options of a tiny run on forty examples."""
    folder = tmp_path_factory.mktemp("tiny")
    made = [*options(folder), "--model.num_beams=1", "--data.batch_size=8"]
    write_examples(folder / "data", EXAMPLES)
    return made


@pytest.fixture
def calibrate(tiny, monkeypatch, tmp_path):
    """Run the command into tmp_path/out and give the record that calibration.json holds."""

    def call(*args, strategies=LIST):
        run(monkeypatch, "calibrate", *tiny, f"--output={tmp_path / 'out'}", strategies, "--tolerance=0.2", *args)
        return CalibrationResult.read(tmp_path / "out" / "calibration.json")

    return call


def losses(report, number):
    """The losses of a test by the ids of the examples."""
    return dict(zip(report.example_ids, report.tests[number].losses, strict=True))


@pytest.fixture
def refused(tiny, monkeypatch, tmp_path, capsys):
    return lambda *args: refusal(monkeypatch, capsys, tmp_path / "out", "calibrate", *tiny, *args)


def by_hand(folder, file, loss):
    """The losses of a setting out of the prediction files."""
    full, early = (read_records(folder / "predictions" / name) for name in ("01_FullDepth.jsonl", file))
    losses = {}
    for before, after in zip(full, early, strict=True):
        assert before["id"] == after["id"]
        if loss == "risk":
            scores = [rouge_scores(record["prediction"], record["references"])["rougeL"] for record in (before, after)]
            losses[before["id"]] = max(0, scores[0] - scores[1])
        else:
            same = before["prediction"] == after["prediction"]
            losses[before["id"]] = (
                0 if same else 1 - rouge_scores(after["prediction"], [before["prediction"]])["rougeL"]
            )
    return losses


@pytest.mark.slow
def test_the_list_is_gone_through_until_one_does_not_pass(calibrate, tmp_path, monkeypatch, capsys):
    report = calibrate("--loss=textual", "--seed_everything=3")
    out = tmp_path / "out"
    assert [(row.name, test.passed) for row, test in report.tested] == [
        ("CALM(threshold=1.0)", True),
        ("CALM(threshold=0.999)", True),
        ("HSD(num_skipped=2, min_exit=0, max_exit=1)", False),
    ]
    files = sorted(path.name for path in (out / "predictions").iterdir())
    assert [name[:6] for name in files] == ["01_Ful", "02_CAL", "03_CAL", "04_HSD"]  # SkipDecode was not decoded
    assert {record["id"].partition("-")[0] for record in read_records(out / "predictions" / files[0])} == {"validation"}
    assert any(test.mean_loss > 0 for test in report.tests)
    assert len(report.tests) == 3
    for number, file in enumerate(files[1:]):
        assert losses(report, number) == pytest.approx(by_hand(out, file, "textual"))
    assert report.chosen.name == "CALM(threshold=0.999)"
    assert guarantee(report).startswith("With probability at least 95 % over the draw of the 40 calibration examples")
    assert report.run.config["tolerance"] == 0.2
    printed = " ".join(capsys.readouterr().out.split())
    assert "Setting 3 of 4" in printed
    assert "Setting 4 of 4" not in printed
    assert "CALM(threshold=0.999) writes texts that are on average at most 0.2" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        *(".hsdlab.written", "calibrated.yaml", "calibration.json", "calibration.md", "calibration.png"),
        *("config.yaml", "predictions", "run.json"),
    ]

    capsys.readouterr()
    run(monkeypatch, "test", f"--config={out / 'calibrated.yaml'}", f"--output={tmp_path / 'test'}")
    config = yaml.safe_load((tmp_path / "test" / "config.yaml").read_text(encoding="utf-8"))
    assert config["skip"]["class_path"].rpartition(".")[2] == "CALM"
    assert config["skip"]["init_args"]["threshold"] == 0.999
    asked = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    assert {name: config[name] for name in ("model", "data", "trainer")} == {
        name: asked[name] for name in ("model", "data", "trainer")
    }
    assert config["seed_everything"] == 3
    assert read_records(tmp_path / "test" / "predictions.jsonl")[0]["id"] == "test-0"


def test_risk_is_out_of_the_recorded_scores(tiny, calibrate, monkeypatch, tmp_path):
    run(monkeypatch, "validate", *tiny, f"--output={tmp_path / 'full'}")
    data = write_examples(tmp_path / "data", EXAMPLES)
    examples = [  # full depth's texts as references: a setting has something to lose
        {"id": record["id"], "source": record["source"], "references": [record["prediction"] or "nothing"]}
        for record in read_records(tmp_path / "full" / "predictions.jsonl")
    ]
    (data / "validation.jsonl").write_text("\n".join(map(json.dumps, examples)), encoding="utf-8")
    args = ("--loss=risk", "--bound=hoeffding", f"--data.folder={data}")
    report = calibrate(*args, strategies=f"--strategies=[{ONE_LAYER}]")
    (file,) = (tmp_path / "out" / "predictions").glob("02_*")
    expected = by_hand(tmp_path / "out", file.name, "risk")
    assert losses(report, 0) == pytest.approx(expected)
    assert report.tests[0].mean_loss == pytest.approx(sum(expected.values()) / EXAMPLES)
    assert report.tests[0].mean_loss > 0.1
    assert report.bound == "hoeffding"


def test_exact_match_with_the_exact_binomial(calibrate, tmp_path):
    report = calibrate("--loss=textual", "--metric=exact_match", "--bound=binomial")
    (file,) = (tmp_path / "out" / "predictions").glob("04_*")
    full, early = (read_records(tmp_path / "out" / "predictions" / name) for name in ("01_FullDepth.jsonl", file.name))
    changed = {a["id"]: float(a["prediction"] != b["prediction"]) for a, b in zip(full, early, strict=True)}
    assert losses(report, -1) == changed
    assert report.tests[0].p_value == pytest.approx(0.8**EXAMPLES)


def test_where_nothing_passes_the_config_is_full_depth(calibrate, tmp_path, monkeypatch):
    report = calibrate("--loss=textual", strategies=f"--strategies=[{ONE_LAYER}, {SURE}]")
    assert report.chosen.name == "FullDepth()"
    assert guarantee(report).startswith("No setting is shown to be one that")
    assert len(report.tests) == 1
    config = tmp_path / "out" / "calibrated.yaml"
    run(monkeypatch, "test", f"--config={config}", f"--output={tmp_path / 'test'}", "--data.limit=2")
    assert {record["average_layers"] for record in read_records(tmp_path / "test" / "predictions.jsonl")} == {3.0}


def test_too_few_examples_are_warned_of(calibrate, tmp_path):
    with pytest.warns(UserWarning, match=r"can only end with full depth: with 5 examples .* 14 examples are needed"):
        report = calibrate("--data.limit=5")
    assert report.chosen.name == "FullDepth()"
    kept = yaml.safe_load((tmp_path / "out/calibrated.yaml").read_text())
    assert "limit" not in kept["data"]["init_args"], "of the calibration, not of the test"
    assert "With 5 examples none could pass: 14 are needed" in guarantee(report)


@pytest.mark.slow
def test_a_killed_calibration_ends_as_if_nothing_had_happened(tiny, tmp_path, monkeypatch, capsys):
    slow = "{class_path: tests.runs.test_resume.Slow, init_args: {layers: %d}}"
    args = ["calibrate", *tiny, f"--strategies=[{slow % 3}, {slow % 2}, {slow % 1}]", "--tolerance=0.2"]
    args += ["--loss=textual", "--data.batch_size=2"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    run(monkeypatch, *args, f"--output={whole}")
    interrupt([*args, f"--output={killed}"], killed, EXAMPLES + 6, by=signal.SIGKILL)
    assert not (killed / "calibrated.yaml").exists()
    done = lines(killed)
    capsys.readouterr()
    run(monkeypatch, *args, f"--output={killed}")
    assert f"{done} of at most {4 * EXAMPLES} predictions are done" in capsys.readouterr().out
    reports = [json.loads((folder / "calibration.json").read_text(encoding="utf-8")) for folder in (killed, whole)]
    assert without_times(reports[0]) == without_times(reports[1])
    assert [test["passed"] for test in reports[0]["tests"]] == [True, False]
    names = sorted(path.name for path in (whole / "predictions").iterdir())
    assert names == sorted(path.name for path in (killed / "predictions").iterdir())
    assert len(names) == 3
    for name in names:
        first, second = (without_costs(read_records(folder / "predictions" / name)) for folder in (killed, whole))
        assert first == second

    decoded = []
    monkeypatch.setattr(hsdlab.modules.decode.DecodeModule, "_decode", lambda *args: decoded.append(args))
    run(monkeypatch, *args, f"--output={killed}")
    assert decoded == []
    with pytest.raises(FileExistsError, match=r"tolerance: 0\.2 then, 0\.3 now"):
        run(monkeypatch, *args, f"--output={killed}", "--tolerance=0.3")
    with pytest.raises(FileExistsError, match="strategies: "):  # the order is fixed before the losses are seen
        run(monkeypatch, *args, f"--output={killed}", f"--strategies=[{slow % 3}, {slow % 2}, {slow % 1}, {SURE}]")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--tolerance=0"], "tolerance=0.0: expected a number between 0 and 1"),
        (["--error=1.5"], "error=1.5: expected a number between 0 and 1"),
        (["--bound=student"], "bound"),
        (["--loss=squared"], "loss"),
        (["--metric=bleu4"], "BLEU is a figure of a whole corpus"),
        (["--metric=meteor"], "metric=meteor; expected one of rouge1, "),
        (["--metric=bertscore_f1"], "computed by bertscore, which is not in model.metrics=[rouge, bleu]"),
        (["--bound=binomial"], "metric=exact_match"),
        (["--strategies=[FullDepth]"], "strategies names no setting besides full depth"),
        (["--strategies=[CALM, HSD, CALM]"], "2 times"),
        (["--strategies=[OracleExit]"], " is an oracle"),
        (["--strategies=[{class_path: CALM, init_args: {exit_rule: min}}]"], "give --data.batch_size=1"),
        (["--skip=HSD"], "skip"),
    ],
)
def test_what_cannot_end_well_is_refused_before_the_model_is_loaded(args, expected, refused):
    assert expected in refused(LIST, *args)


CHECKED = {"tolerance": 0.5, "error": 0.5, "bound": "hoeffding", "metric": "rougeL", "computed": ["rouge"]}


def test_rows_that_depend_on_each_other_may_be_decoded_one_by_one():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_calibration([CALM(exit_rule="min")], **CHECKED, examples=list("abcd"), batch_size=1)
        check_calibration([FullDepth(), HSD()], **CHECKED, examples=list("abcd"), batch_size=8)
    with pytest.raises(ValueError, match="oracle"):
        check_calibration([HSD(), OracleExit()], **CHECKED, examples=list("abcd"), batch_size=1)


def test_examples_of_one_id_are_refused():
    with pytest.raises(ValueError, match="2 calibration examples have the id 'b'"):
        check_calibration([HSD()], **CHECKED, examples=list("abcb"), batch_size=1)
