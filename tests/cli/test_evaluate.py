"""The command line: layers of configuration, whole runs on a tiny model, bad input."""

import json
import re
import shlex
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hsdlab.modules.decode
from hsdlab import CALM, HSD, PABEE, FullDepth, ScheduledStrategy, SkipDecode
from hsdlab.cli import main
from hsdlab.errors import RunError
from hsdlab.runs.strategies import baseline_first
from tests.tiny_runs import EXAMPLES, ParseOnly, options, read_records, run, without_costs, write_examples

ROOT = Path(__file__).parents[2]
SKIPDECODE = """\
skip:
  class_path: SkipDecode
  init_args: {min_exit: 10, max_exit: 24, warmup: 2, decay: cosine}
"""
FITTING_HSD = "{class_path: HSD, init_args: {max_exit: 2}}"
FITTING_SKIPDECODE = "{class_path: SkipDecode, init_args: {min_exit: 1, max_exit: 2}}"


class EveryOther(ScheduledStrategy):
    """A user's own strategy."""

    def layers_at(self, step, num_layers, max_steps):
        return tuple(range(0, num_layers, 2))


class Breaks(ScheduledStrategy):
    """Is good when it meets the model and fails in the third decode that is asked of it.

    Args:
        error: What it raises.
    """

    def __init__(self, error: str = "ZeroDivisionError") -> None:
        self.error = error
        self.asked = 0

    def layers_at(self, step, num_layers, max_steps):
        if step == 0:
            self.asked += 1
        if self.asked > 2:
            raise {"KeyboardInterrupt": KeyboardInterrupt, "ZeroDivisionError": ZeroDivisionError}[self.error]
        return (0, num_layers - 1)


@pytest.fixture(scope="module")
def tiny_options(tmp_path_factory):
    return options(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def evaluate(tiny_options, monkeypatch, tmp_path):
    """Run a subcommand on the tiny model and data, into tmp_path/out unless told otherwise."""

    def call(subcommand, *args):
        return run(monkeypatch, subcommand, *tiny_options, f"--output={tmp_path / 'out'}", *args)

    return call


@pytest.fixture
def refused(tiny_options, monkeypatch, tmp_path, capsys):
    """Run `main`, expect that it ends before a model is loaded, and return what it says."""

    def call(subcommand, *args):
        monkeypatch.setattr(sys, "argv", ["evaluate.py"])
        monkeypatch.setattr(hsdlab.modules.decode, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
        with pytest.raises(SystemExit) as end:
            main([subcommand, *tiny_options, f"--output={tmp_path / 'out'}", *args])
        assert end.value.code not in (0, None)
        assert not (tmp_path / "out" / "config.yaml").exists()
        code = end.value.code
        message = code if isinstance(code, str) else capsys.readouterr().err
        assert "Traceback" not in message
        return message

    return call


# ---- layers of configuration


def read_events(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def parsed_skip(monkeypatch, tmp_path, *layers):
    """Parse configs (YAML text) and flags in order; give the strategy's configuration."""
    args = ["test", "--model.name=x", "--data=Docstrings"]
    for number, layer in enumerate(layers):
        if layer.startswith("--"):
            args.append(layer)
        else:
            path = tmp_path / f"{number}.yaml"
            path.write_text(layer, encoding="utf-8")
            args.append(f"--config={path}")
    return run(monkeypatch, *args, cli=ParseOnly).config.test.skip.as_dict()


WHOLE_PROMPT = {"prompt_min_exit": None, "prompt_max_exit": None}
HSD_DEFAULTS = {"num_skipped": 1, "min_exit": 0, "max_exit": None, "decay": "linear"} | WHOLE_PROMPT


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([SKIPDECODE, "--skip=HSD"], HSD_DEFAULTS),
        ([SKIPDECODE, "skip: HSD"], HSD_DEFAULTS),
        ([SKIPDECODE, "skip: {class_path: hsdlab.HSD}"], HSD_DEFAULTS),
        ([SKIPDECODE, "skip: {class_path: HSD, init_args: {max_exit: 7}}"], HSD_DEFAULTS | {"max_exit": 7}),
        ([SKIPDECODE, "--skip=HSD", "--skip.num_skipped=2"], HSD_DEFAULTS | {"num_skipped": 2}),
        (["--skip=SkipDecode", "--skip.min_exit=3", "--skip=HSD"], HSD_DEFAULTS),
    ],
)
def test_naming_another_class_drops_the_arguments_of_the_earlier_one(layers, expected, monkeypatch, tmp_path):
    skip = parsed_skip(monkeypatch, tmp_path, *layers)
    assert skip == {"class_path": "hsdlab.HSD", "init_args": expected}


@pytest.mark.parametrize("layer", ["--skip.max_exit=15", "skip: {init_args: {max_exit: 15}}"])
def test_an_argument_alone_changes_the_configured_strategy(layer, monkeypatch, tmp_path):
    skip = parsed_skip(monkeypatch, tmp_path, SKIPDECODE, layer)
    expected = {"min_exit": 10, "max_exit": 15, "warmup": 2, "decay": "cosine"} | WHOLE_PROMPT
    assert skip == {"class_path": "hsdlab.SkipDecode", "init_args": expected}


def test_a_number_of_layers_may_be_left_to_the_model(monkeypatch, tmp_path, refused):
    skip = parsed_skip(monkeypatch, tmp_path, SKIPDECODE, "--skip.max_exit=auto", "--skip.min_exit=null")
    expected = {"min_exit": None, "max_exit": "auto", "warmup": 2, "decay": "cosine"} | WHOLE_PROMPT
    assert skip["init_args"] == expected
    assert "max_exit" in refused("test", "--skip=SkipDecode", "--skip.max_exit=half")


def test_the_default_is_full_depth_and_never_none(monkeypatch, tmp_path, refused):
    assert parsed_skip(monkeypatch, tmp_path)["class_path"] == "hsdlab.FullDepth"
    assert "skip" in refused("test", "--skip=null")


def test_jsonargparse_is_as_before_after_parsing(monkeypatch, tmp_path):
    from jsonargparse import _typehints

    before = _typehints.discard_init_args_on_class_path_change
    parsed_skip(monkeypatch, tmp_path, SKIPDECODE, "--skip=HSD")
    assert _typehints.discard_init_args_on_class_path_change is before


def test_another_data_set_drops_the_arguments_too(monkeypatch):
    args = ["--data=JSONLines", "--data.folder=x", "--data.prompt={source}!", "--data=Docstrings"]
    data = run(monkeypatch, "test", "--model.name=x", *args, cli=ParseOnly).config.test.data
    assert data.init_args.prompt.startswith("{source}\n\nSummarize")


COMPOSE = """\
skip:
  class_path: Compose
  init_args:
    schedule: {class_path: SkipDecode, init_args: {min_exit: 1, max_exit: 2}}
    confidence: {class_path: CALM, init_args: {threshold: 0.5}}
"""


@pytest.mark.parametrize(
    ("layers", "schedule", "confidence"),
    [
        ([COMPOSE], SkipDecode(1, 2), CALM(0.5)),
        ([COMPOSE, "--skip.schedule=HSD", "--skip.schedule.max_exit=2"], HSD(max_exit=2), CALM(0.5)),
        ([COMPOSE, "--skip.confidence.probe_layers=[1,3]"], SkipDecode(1, 2), CALM(0.5, probe_layers=[1, 3])),
        (["--skip=Compose", "--skip.schedule=HSD", "--skip.confidence=PABEE"], HSD(), PABEE()),
    ],
)
def test_a_composed_strategy_is_named_by_its_parts(layers, schedule, confidence, monkeypatch, tmp_path):
    skip = parsed_skip(monkeypatch, tmp_path, *layers)
    assert skip["class_path"] == "hsdlab.Compose"
    parts = skip["init_args"]
    assert parts["schedule"]["class_path"] == f"hsdlab.{type(schedule).__name__}"
    assert parts["schedule"]["init_args"] == schedule.parameters()
    assert parts["confidence"]["class_path"] == f"hsdlab.{type(confidence).__name__}"
    assert parts["confidence"]["init_args"] == confidence.parameters()


def test_parts_that_contradict_each_other_are_refused(refused):
    message = refused("test", "--skip=Compose", "--skip.schedule=HSD", "--skip.confidence=SkipDecode")
    assert "--skip.confidence: unfit class 'SkipDecode'; expected one of CALM, DeeBERT, " in message  # and tests' own
    message = refused("test", "--skip=Compose", "--skip.schedule=Compose", "--skip.confidence=CALM")
    assert "--skip.schedule: unfit class 'Compose'; expected one of" in message
    assert "CALM" not in message


def test_compare_marks_an_oracle_and_gives_it_no_time(evaluate, tmp_path):
    composed = (
        "{class_path: Compose, init_args: {schedule: {class_path: HSD, init_args: {max_exit: 2}}, confidence: CALM}}"
    )
    evaluate("compare", f"--strategies=[OracleExit, {composed}]", "--trainer.limit_test_batches=1")
    report = json.loads((tmp_path / "out/comparison.json").read_text())
    _, oracle, compose = report["rows"]
    assert oracle["is_oracle"]
    assert oracle["speed_up"] is None
    assert not compose["is_oracle"]
    assert compose["speed_up"] > 0
    assert compose["strategy"]["init_args"]["schedule"]["init_args"]["max_exit"] == 2
    assert "OracleExit(law)` (oracle) " in (tmp_path / "out/comparison.md").read_text()


# ---- whole runs


def test_test_writes_predictions_metrics_and_a_config_that_runs_again(evaluate, monkeypatch, tmp_path):
    evaluate("test", "--skip=HSD", "--skip.max_exit=2", "--seed_everything=7")
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        ".hsdlab.written",
        "config.yaml",
        "metrics.json",
        "predictions.jsonl",
        "result.json",
        "run.json",
        "tensorboard",
    ]
    figures = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert 2 < figures["test/average_layers"] < 3
    run_info = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run_info["seed"] == 7
    assert run_info["config"]["skip"]["init_args"]["max_exit"] == 2
    assert yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8")) == run_info["config"]

    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "test", f"--config={out / 'config.yaml'}")
    files = (tmp_path / "runs" / "test" / "predictions.jsonl", out / "predictions.jsonl")
    first, second = (without_costs(read_records(file)) for file in files)
    assert first == second

    run(monkeypatch, "test", f"--config={out / 'config.yaml'}", "--skip=FullDepth", "--output=runs/full")
    assert {record["average_layers"] for record in read_records(tmp_path / "runs/full/predictions.jsonl")} == {3.0}


@pytest.mark.parametrize(
    ("subcommand", "split", "options"),
    [
        ("validate", "validation", []),
        ("predict", "test", []),
        ("predict", "validation", ["--data.predict_split=validation"]),
    ],
)
def test_validate_and_predict(subcommand, split, options, evaluate, tmp_path):
    evaluate(subcommand, "--skip=tests.cli.test_evaluate.EveryOther", *options)
    records = read_records(tmp_path / "out" / "predictions.jsonl")
    assert [record["id"] for record in records] == [f"{split}-{i}" for i in range(EXAMPLES)]
    assert {record["average_layers"] for record in records} == {2.0}
    assert (tmp_path / "out" / "metrics.json").is_file() == (subcommand == "validate")


def test_compare(evaluate, tmp_path, monkeypatch, capsys):
    loads = []
    load = hsdlab.modules.decode.load_model
    monkeypatch.setattr(hsdlab.modules.decode, "load_model", lambda *a, **k: loads.append(a) or load(*a, **k))
    out = tmp_path / ("a folder whose name is longer than a line, " * 3).strip()
    evaluate("compare", f"--strategies=[{FITTING_HSD}, {FITTING_SKIPDECODE}]", f"--output={out}")
    assert len(loads) == 1
    report = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert [row["strategy"]["class_path"].rpartition(".")[2] for row in report["rows"]] == [
        "FullDepth",
        "HSD",
        "SkipDecode",
    ]
    assert report["rows"][1]["strategy"]["init_args"]["max_exit"] == 2
    assert [row["is_baseline"] for row in report["rows"]] == [True, False, False]
    assert report["run"]["config"]["seed_everything"] == 0
    assert report["rows"][0]["figures"]["average_layers"] == 3
    assert {row["examples"] for row in report["rows"]} == {EXAMPLES}
    assert set(report["rows"][0]["quality"]) == {
        *("rouge1", "rouge2", "rougeL"),
        *("bleu1", "bleu2", "bleu3", "bleu4"),
    }
    assert (out / "comparison.md").is_file()
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    files = sorted(path.name for path in (out / "predictions").iterdir())
    assert [name[:6] for name in files] == ["01_Ful", "02_HSD", "03_Ski"]
    printed = capsys.readouterr().out
    assert f"3 strategies over {EXAMPLES} examples" in printed
    assert "max_exit=2" in printed
    assert (out / "depth.png").read_bytes().startswith(b"\x89PNG")
    assert "](depth.png)" in (out / "comparison.md").read_text(encoding="utf-8")
    # TensorBoard: the printed command names the folder of the runs, one beside each file of predictions.
    (command,) = [line.partition(": ")[2] for line in printed.splitlines() if "tensorboard" in line]
    assert shlex.split(command) == ["tensorboard", "--logdir", str(out / "tensorboard")]
    runs = sorted(path.name for path in (out / "tensorboard").iterdir())
    assert runs[0] == "01_FullDepth"
    assert re.fullmatch(r"02_HSD\(\d+,\d+,2\)", runs[1])
    assert re.fullmatch(r"03_SkipDecode\([\d,]+\)", runs[2])
    assert runs[3:] == ["comparison"]
    board = read_events(out / "tensorboard" / runs[1])
    quality = report["rows"][1]["quality"]["rougeL"]["value"]
    assert board.Scalars("quality/rougeL")[0].value == pytest.approx(quality)
    assert [event.value for event in board.Scalars("depth/layers_in_step")] == [3, 3, 2, 2, 2]

    evaluate("test", "--skip=HSD", "--skip.max_exit=2", f"--output={tmp_path / 'alone'}")
    alone = without_costs(read_records(tmp_path / "alone" / "predictions.jsonl"))
    assert alone == without_costs(read_records(out / "predictions" / files[1]))


@pytest.mark.parametrize(
    ("error", "raised"), [("ZeroDivisionError", ZeroDivisionError), ("KeyboardInterrupt", SystemExit)]
)
def test_compare_keeps_what_finished_when_a_strategy_breaks(error, raised, evaluate, tmp_path, capsys):
    handler = signal.getsignal(signal.SIGINT)
    breaks = f"{{class_path: tests.cli.test_evaluate.Breaks, init_args: {{error: {error}}}}}"
    try:
        with pytest.raises(raised):
            evaluate("compare", f"--strategies=[HSD, {breaks}, {FITTING_SKIPDECODE}]")
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further Ctrl-C
    files = sorted(path for path in (tmp_path / "out" / "predictions").iterdir() if read_records(path))
    assert [path.name[:6] for path in files] == ["01_Ful", "02_HSD"]
    printed = capsys.readouterr().out
    assert "Cut short after 2 decodes of a batch. 2 of 4 strategies have begun; the table is over the 1 b" in printed
    assert "FullDepth is the baseline (100 %). 2 examples, 3 layers." in printed


@pytest.mark.slow
def test_compare_in_the_folder_of_another_leaves_none_of_its_runs(evaluate, tmp_path):
    cli = evaluate("compare", "--strategies=[HSD]")
    cli.trainer.compare(cli.model, cli.datamodule, [])
    events = sorted(path.parent.name for path in (tmp_path / "out" / "tensorboard").glob("*/events*"))
    assert events == ["01_FullDepth", "comparison"]


@pytest.mark.slow  # tests/runs/test_report.py has the run of one strategy
def test_test_writes_the_run_that_compare_would(evaluate, tmp_path):
    evaluate("test", f"--skip={FITTING_HSD}")
    evaluate("compare", f"--strategies=[{FITTING_HSD}]", f"--output={tmp_path / 'both'}")
    (alone,) = (read_events(path) for path in (tmp_path / "out" / "tensorboard").iterdir())
    (among,) = (read_events(path) for path in (tmp_path / "both" / "tensorboard").glob("*HSD*"))
    relative = {tag for tag in among.Tags()["scalars"] if tag.startswith("percent_of_baseline")} | {"cost/speed_up"}
    assert set(alone.Tags()["scalars"]) == set(among.Tags()["scalars"]) - relative  # it has no baseline
    assert alone.Tags()["images"] == among.Tags()["images"]
    for tag in ("quality/rougeL", "quality/bleu4", "cost/average_layers"):
        assert alone.Scalars(tag)[0].value == among.Scalars(tag)[0].value


def test_lightnings_own_logger_works_beside(evaluate, tmp_path):
    evaluate("test", "--trainer.logger=TensorBoardLogger", f"--trainer.logger.save_dir={tmp_path / 'own'}")
    logged = read_events(tmp_path / "own" / "lightning_logs" / "version_0")
    assert logged.Scalars("test/average_layers")[0].value == 3


@pytest.mark.slow
def test_compare_samples_alike_for_each_strategy(evaluate, tmp_path):
    evaluate(
        "compare",
        "--model.num_beams=1",
        "--model.generate_kwargs={do_sample: true, temperature: 3.0}",
        "--strategies=[{class_path: HSD, init_args: {num_skipped: 0}}]",
    )
    full, never_skips = sorted((tmp_path / "out" / "predictions").iterdir())
    assert without_costs(read_records(full)) == without_costs(read_records(never_skips))


def test_the_baseline_is_first_and_added_where_it_is_missing():
    hsd, skipdecode = HSD(), SkipDecode()
    for strategies in ([hsd, skipdecode], [hsd, FullDepth(), skipdecode]):
        assert [repr(s) for s in baseline_first(strategies)] == [repr(s) for s in (FullDepth(), hsd, skipdecode)]
    with pytest.raises(ValueError, match="2 times"):
        baseline_first([CALM(), hsd, CALM()])


def test_bench_hands_on_prompts_and_strategies(evaluate, tmp_path, monkeypatch):
    calls = []
    bench = import_module("hsdlab.runs.bench")
    monkeypatch.setattr(bench, "run_bench", lambda *args, **kwargs: calls.append((args, kwargs)))
    evaluate("bench", "--strategies=[HSD]", "--prompts=2", "--new_tokens=5", "--repeats=1")
    (((_, (cell,), strategies), kwargs),) = calls
    prompts = [batch.input_ids for batch in cell.batches]
    assert [prompt.shape[0] for prompt in prompts] == [1, 1]
    assert prompts[0].shape[1] < prompts[1].shape[1]  # "hello", "hello hello": not padded
    assert [type(strategy) for strategy in strategies] == [HSD]
    assert kwargs["folder"] == tmp_path / "out"
    assert (kwargs["options"].new_tokens, kwargs["options"].repeats) == (5, 1)
    assert kwargs["run"].config["repeats"] == 1


@pytest.mark.parametrize("text", ["references", "generated"])
def test_inspect(text, evaluate, tmp_path, capsys):
    evaluate("inspect", "--examples=3", f"--text={text}")
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        ".hsdlab.written",
        "config.yaml",
        "inspect.json",
        "inspect.md",
        "inspect.png",
        "reliability.png",
        "run.json",
    ]
    report = json.loads((out / "inspect.json").read_text(encoding="utf-8"))
    assert [row["layer"] for row in report["layers"]] == [0, 1, 2]
    assert report["examples"] == 3
    assert report["text"] == f"{text} of at most 6 tokens"
    assert report["run"]["config"]["examples"] == 3
    assert "skip" not in report["run"]["config"]
    assert "An oracle exit would run" in capsys.readouterr().out
    evaluate("inspect", "--examples=3", f"--text={text}", f"--before={out}", f"--output={tmp_path / 'after'}")
    after = json.loads((tmp_path / "after" / "inspect.json").read_text(encoding="utf-8"))
    assert after["before"]["layers"] == report["layers"] == after["layers"]


def test_inspect_refuses_an_earlier_inspection_of_other_examples(evaluate, tmp_path):
    evaluate("inspect", "--examples=3")
    before = f"--before={tmp_path / 'out'}"

    def refusal(*args):
        with pytest.raises(RunError) as error:
            evaluate("inspect", f"--output={tmp_path / 'after'}", "--overwrite", *args)
        return str(error.value)

    assert "measured other examples than this run. Give the same data" in refusal(before, "--examples=2")
    assert "measured references of at most 6 tokens; expected generated" in refusal(
        before, "--examples=3", "--text=generated"
    )
    assert "expected the folder of a finished `inspect`" in refusal(f"--before={tmp_path / 'nowhere'}")


def test_overwrite_replaces_the_results_and_nothing_else(evaluate, tmp_path):
    evaluate("compare", "--strategies=[HSD]")
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    evaluate("test", "--overwrite")
    assert sorted(path.name.partition(".tfevents")[0] for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        ".hsdlab.written",
        "config.yaml",
        "events.out",
        "metrics.json",
        "notes.txt",
        "predictions.jsonl",
        "result.json",
        "run.json",
    ]


# ---- bad input, refused before the model is loaded


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--skip=Unknown"], "unknown class 'Unknown'; expected one of "),
        (["--skip=Unknown"], "CALM, "),
        (["--skip=my_package.EveryOther"], "No module named 'my_package'"),
        (["--data=Unknown"], "unknown class 'Unknown'; expected one of DataFolder, Docstrings, "),
        (["--skip=HSD", "--skip.min_exit=5", "--skip.max_exit=2"], "min_exit=5 is larger than max_exit=2"),
        (["--skip=HSD", "--skip.num_skipped=-1"], "num_skipped=-1; expected"),
        (["--skip.threshold=1"], "the class that --skip names takes no such argument"),
        (["--model.max_new_tokens=0"], "model.max_new_tokens"),
        (["--model.num_beams=0"], "model.num_beams"),
        (["--model.metrics=[meteor]"], "model.metrics"),
        (["--model.dtype=int8"], "model.dtype"),
        (["--data.folder=nowhere"], "nowhere"),
        (["--data=DataFolder"], "--data.folder"),
        (["--data.batch_size=0"], "batch_size=0"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_options_end_with_one_clear_message(args, expected, refused):
    message = refused("test", *args)
    assert expected in message
    assert len(message.splitlines()) < 12


def test_a_list_with_an_unknown_strategy_or_one_twice_is_refused(refused):
    assert "expected one of " in refused("compare", "--strategies=[HSD, Unknown]")
    assert "HSD(" in refused("compare", "--strategies=[HSD, CALM, HSD]")


def test_bad_data_is_refused_with_file_and_line(refused, tmp_path):
    folder = write_examples(tmp_path / "bad")
    with (folder / "test.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"id": "x", "source": "y", "references": []}')
    assert f"test.jsonl, line {EXAMPLES + 1}" in refused("test", f"--data.folder={folder}")


def test_inspect_is_refused_without_a_validation_split_or_examples(refused, tmp_path):
    folder = write_examples(tmp_path / "bad")
    (folder / "validation.jsonl").unlink()
    assert "validation" in refused("inspect", f"--data.folder={folder}")
    assert "examples" in refused("inspect", "--examples=0")
    assert "text" in refused("inspect", "--text=novels")
    assert "skip" in refused("inspect", "--skip=HSD")


def test_an_output_folder_with_something_in_it_is_refused(refused, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.txt").write_text("precious", encoding="utf-8")
    message = refused("test")
    assert "not empty" in message
    assert "--overwrite" in message
    assert (tmp_path / "out" / "result.txt").read_text(encoding="utf-8") == "precious"


# ---- bad input that only the model shows


@pytest.mark.parametrize(
    ("subcommand", "args", "expected"),
    [
        ("test", ["--skip=HSD", "--skip.max_exit=4"], "max_exit=4 is beyond this model's 3 layers"),
        (
            "compare",
            ["--strategies=[HSD, {class_path: SkipDecode, init_args: {max_exit: 20}}]"],
            "max_exit=20 is beyond this model's 3 layers",
        ),
        ("test", ["--skip=HSD", "--trainer.callbacks=CALM"], "Expected one skip strategy in a run, got 2"),
        ("test", ["--model.name=nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_what_does_not_fit_the_model_ends_with_one_message(
    subcommand, args, expected, tiny_options, monkeypatch, tmp_path
):
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    with pytest.raises(SystemExit) as end:
        main([subcommand, *tiny_options, f"--output={tmp_path / 'out'}", *args])
    assert expected in str(end.value)


def test_an_error_of_the_program_keeps_its_traceback(tiny_options, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    with pytest.raises(ZeroDivisionError):
        main(["test", *tiny_options, f"--output={tmp_path / 'out'}", "--skip=tests.cli.test_evaluate.Breaks"])


# ---- help


def test_the_script_prints_its_subcommands():
    done = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), "--help"], capture_output=True, text=True, check=True
    )
    for subcommand in ("validate", "test", "predict", "compare", "bench", "inspect"):
        assert subcommand in done.stdout
