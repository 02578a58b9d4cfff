"""Runs that were killed go on and end as uninterrupted ones; what cannot go on is refused with the reason."""

import json
import os
import re
import signal
import sys
import time
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import torch

import hsdlab.modules.decode
from hsdlab import ScheduledStrategy
from hsdlab.cli import main
from hsdlab.errors import RunError
from hsdlab.models import load_model
from hsdlab.records.document import to_plain
from tests.forked import CONTEXT
from tests.small_disk import small_disk  # noqa: F401  a fixture
from tests.tiny_checkpoints import save
from tests.tiny_runs import EXAMPLES, options, read_records, run, without_costs, write_examples

HSD = "{class_path: HSD, init_args: {max_exit: 2}}"
SKIPDECODE = "{class_path: SkipDecode, init_args: {min_exit: 1, max_exit: 2}}"
TIMES = (
    "decode_step_ms",
    "tokens_per_second",
    "prompt_ms",
    "speed_up",
    "speed_up_interval",
    "decode_s",
    "prompt_s",
    "wall_s",
    "shared_prompt_passes",  # a strategy that goes on alone measures its own prefill
)


class Slow(ScheduledStrategy):
    """Gives a test the time to kill the run.

    Args:
        layers: How many run.
        pause_s: Seconds that it takes for each batch.
    """

    def __init__(self, layers: int = 2, pause_s: float = 0.05) -> None:
        self.layers = layers
        self.pause_s = pause_s

    def layers_at(self, step, num_layers, max_steps):
        if step == 0:
            time.sleep(self.pause_s)
        return tuple(range(self.layers))


def evaluate_alone(args):
    """Run `python evaluate.py` with these arguments, in a process of its own."""
    torch.set_num_threads(1)
    sys.argv = ["evaluate.py", *args]
    main(args)


def interrupt(args, folder, predictions, by):
    """Start a run in a new process, end it by a signal once it has made that many predictions; give its exit code."""
    process = CONTEXT.Process(target=evaluate_alone, args=(args,))
    process.start()
    deadline = time.monotonic() + 100
    while lines(folder) < predictions and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, by)
    process.join(timeout=30)
    assert process.exitcode not in (0, None)
    assert lines(folder) >= predictions
    return process.exitcode


def lines(folder):
    return sum(file.read_bytes().count(b"\n") for file in folder.rglob("*.jsonl"))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_times(node):
    """Return a report, a record or JSON of one, without times and without the run that made it."""
    if is_dataclass(node):
        node = to_plain(node)
    if isinstance(node, dict):
        return {name: without_times(item) for name, item in node.items() if name not in (*TIMES, "run")}
    return [without_times(item) for item in node] if isinstance(node, list) else node


@pytest.fixture
def tiny(tmp_path):
    """The options of a tiny run; the model and the data are this test's own."""
    return [*options(tmp_path / "tiny"), f"--output={tmp_path / 'out'}"]


@pytest.fixture
def evaluate(tiny, monkeypatch):
    return lambda subcommand, *args: run(monkeypatch, subcommand, *tiny, *args)


@pytest.fixture
def refused(tiny, monkeypatch):
    """Run `main`, expect that it refuses before anything is decoded or written, and return what it says."""

    def call(subcommand, *args):
        folder = next(arg for arg in reversed((*tiny, *args)) if arg.startswith("--output=")).partition("=")[2]
        before = contents(Path(folder))
        monkeypatch.setattr(sys, "argv", ["evaluate.py"])
        with pytest.raises(SystemExit) as end:
            main([subcommand, *tiny, *args])
        assert contents(Path(folder)) == before
        return str(end.value)

    return call


@pytest.fixture
def decoded(monkeypatch):
    """The numbers of the batches that are decoded."""
    numbers = []
    decode = hsdlab.modules.decode.DecodeModule._decode
    monkeypatch.setattr(
        hsdlab.modules.decode.DecodeModule,
        "_decode",
        lambda self, batch, number: numbers.append(number) or decode(self, batch, number),
    )
    return numbers


@pytest.mark.slow
def test_compare_killed_twice_and_interrupted_ends_as_if_nothing_had_happened(tmp_path, monkeypatch, capsys):
    args = ["compare", *options(tmp_path), "--data.batch_size=1", "--model.num_beams=1"]
    args += ["--model.generate_kwargs={do_sample: true, temperature: 3.0}"]
    slow = "{class_path: tests.runs.test_resume.Slow, init_args: {layers: %d}}"
    args.append(f"--strategies=[{slow % 2}, {slow % 1}]")
    number = 12
    write_examples(tmp_path / "data", number)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    run(monkeypatch, *args, f"--output={whole}")
    interrupt([*args, f"--output={killed}"], killed, number + 3, by=signal.SIGKILL)
    last = next(iter(killed.rglob("02_*.jsonl")))
    last.write_bytes(last.read_bytes()[:-7])  # as a power cut would
    interrupt([*args, f"--output={killed}"], killed, number + 7, by=signal.SIGKILL)
    interrupt([*args, f"--output={killed}"], killed, 2 * number + 2, by=signal.SIGINT)
    done = lines(killed)
    assert done < 3 * number
    capsys.readouterr()
    run(monkeypatch, *args, f"--output={killed}")
    assert f"{done} of {3 * number} predictions are done" in capsys.readouterr().out
    for file in (whole / "predictions").iterdir():
        assert without_costs(read_records(killed / "predictions" / file.name)) == without_costs(read_records(file))
    reports = [json.loads((folder / "comparison.json").read_text(encoding="utf-8")) for folder in (killed, whole)]
    assert without_times(reports[0]) == without_times(reports[1])
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize(
    ("by", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_run_that_is_stopped_says_so_by_its_exit_code(by, code, tmp_path):
    """`&&` and SLURM take 0 for a success."""
    slow = "--skip={class_path: tests.runs.test_resume.Slow, init_args: {layers: 2}}"
    args = ["test", *options(tmp_path), slow, "--data.batch_size=1", "--model.num_beams=1"]
    write_examples(tmp_path / "data", 40)
    assert interrupt([*args, f"--output={tmp_path / 'out'}"], tmp_path / "out", 3, by=by) == code
    assert lines(tmp_path / "out") < 40


def test_a_finished_run_gives_its_figures_again_without_decoding(evaluate, decoded, tmp_path, capsys):
    evaluate("test", "--skip=HSD", "--skip.max_exit=2")
    files = {name: (tmp_path / "out" / name).read_bytes() for name in ("metrics.json", "predictions.jsonl")}
    decoded.clear()
    capsys.readouterr()
    evaluate("test", "--skip=HSD", "--skip.max_exit=2", "--trainer.logger=false", "--data.num_workers=0")
    assert decoded == []
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files
    printed = capsys.readouterr().out
    assert f"finished, all {EXAMPLES} predictions are done" in printed
    assert "test/rougeL" not in printed  # Lightning's table of all figures
    assert "ROUGE-L" in printed
    assert "ms per" in printed
    assert "Measured" not in printed  # one strategy alone has no speed-up
    assert f"{EXAMPLES} examples, 3 layers. `compare` also runs FullDepth, the baseline." in printed

    evaluate("test", "--skip=HSD", "--skip.max_exit=2", "--overwrite")
    assert decoded == [0, 1, 2]


@pytest.mark.slow
def test_a_finished_comparison_is_printed_again_and_takes_new_strategies(evaluate, decoded, refused, tmp_path, capsys):
    evaluate("compare", f"--strategies=[{HSD}]")
    report = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    decoded.clear()
    capsys.readouterr()
    evaluate("compare", f"--strategies=[{HSD}]")
    again = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert decoded == []
    assert again["rows"] == report["rows"]
    assert f"2 strategies over {EXAMPLES} examples" in capsys.readouterr().out

    evaluate("compare", f"--strategies=[{HSD}, {SKIPDECODE}]")
    assert decoded == [0, 0, 1, 2]  # the first warms up
    more = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert more["rows"][:2] == report["rows"]
    assert len(more["rows"]) == len(more["run"]["config"]["strategies"]) + 1 == 3

    message = refused("compare", f"--strategies=[{SKIPDECODE}]")
    skipdecode = r"SkipDecode\(min_exit=1, max_exit=2, warmup=1, decay=linear\)"
    hsd = r"HSD\(num_skipped=1, min_exit=0, max_exit=2, decay=linear\)"
    assert re.search(rf"\n  strategies: \[{hsd}, {skipdecode}\] then, \[{skipdecode}\] now\n", message)


def test_another_configuration_is_refused_with_each_difference(evaluate, refused, tmp_path):
    evaluate("test", "--skip=HSD", "--skip.max_exit=2")
    message = refused("test", "--skip=HSD", "--skip.max_exit=1", "--model.num_beams=1")
    assert message.splitlines()[1:3] == [
        "  model.num_beams: 2 then, 1 now",
        "  skip.init_args.max_exit: 2 then, 1 now",
    ]
    assert "--overwrite" in message
    assert f"--config {tmp_path / 'out' / 'config.yaml'} --output {tmp_path / 'out'}" in message
    assert "skip.class_path: hsdlab.HSD then, hsdlab.FullDepth now" in refused("test")
    assert "subcommand: test then, predict now" in refused("predict", "--skip=HSD", "--skip.max_exit=2")


def test_bench_never_goes_on(evaluate, refused):
    evaluate("test")
    assert "is not empty" in refused("bench", "--strategies=[HSD]")


@pytest.mark.parametrize("subcommand", ["test", pytest.param("compare", marks=pytest.mark.slow)])
def test_changed_data_is_refused(subcommand, evaluate, refused, tmp_path):
    args = ["--strategies=[]"] if subcommand == "compare" else []
    evaluate(subcommand, *args)
    file = tmp_path / "tiny" / "data" / "test.jsonl"
    text = file.read_text(encoding="utf-8")
    for old, new, named in (
        ('"hello hello "', '"hello hell "', "test-2"),
        ('"test-3"', '"test-33"', "test-3"),
    ):
        file.write_text(text.replace(old, new), encoding="utf-8")
        assert f"example '{named}' has other texts, has moved or is missing" in refused(subcommand, *args)
    write_examples(file.parent, EXAMPLES + 1)  # another one at the end
    assert "The examples are not those that the run" in refused(subcommand, *args)


@pytest.mark.slow  # one weight, below, is the harder case
def test_other_weights_under_the_same_name_are_refused(evaluate, refused, tmp_path):
    evaluate("test")
    model, _ = load_model(tmp_path / "tiny" / "model", device="cpu")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    save(model, tmp_path / "tiny" / "model")
    assert "The weights are not those that the run" in refused("test")


def edit(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("one weight", "The weights are not those that the run"),
        ("config", "The settings in the model's config are not those that the run"),
        pytest.param(
            "tokenizer",
            "The tokenizer, its chat template or its special tokens are not those that the run",
            marks=pytest.mark.slow,  # refused as a changed template is
        ),
        ("template", "The tokenizer, its chat template or its special tokens are not those that the run"),
        ("generation", "The options of decoding (eos_token_id: 1 then, [1, 7] now) are not those that the run"),
    ],
)
def test_whatever_else_determines_the_texts_is_refused_once_changed(what, says, evaluate, refused, tmp_path):
    evaluate("test")
    folder = tmp_path / "tiny" / "model"
    if what == "one weight":
        model, _ = load_model(folder, device="cpu")
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 5] += 0.001  # none of the few that the fingerprint reads
        save(model, folder)
    elif what == "config":
        edit(folder / "config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    elif what == "tokenizer":
        edit(folder / "tokenizer.json", '"add_prefix_space": false', '"add_prefix_space": true')
    elif what == "template":
        (folder / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    else:
        edit(folder / "generation_config.json", '"eos_token_id": 1', '"eos_token_id": [1, 7]')
    assert says in refused("test")


def test_what_the_commands_do_not_take_of_a_generation_config_is_free(evaluate, decoded, tmp_path):
    evaluate("test")
    decoded.clear()
    edit(tmp_path / "tiny/model/generation_config.json", '"eos_token_id": 1', '"do_sample": true, "eos_token_id": 1')
    evaluate("test")
    assert decoded == []


def test_what_an_earlier_version_did_not_note_is_warned_of(evaluate, decoded, tmp_path, capsys):
    evaluate("test")
    file = tmp_path / "out" / "run.json"
    before = json.loads(file.read_text(encoding="utf-8"))
    for name in ("weights", "weights_hash", "model_config", "tokenizer", "generation"):
        del before[name]
    file.write_text(json.dumps(before), encoding="utf-8")
    (tmp_path / "out" / ".hsdlab.written").unlink()
    decoded.clear()
    capsys.readouterr()
    evaluate("test")
    assert decoded == []
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning")]
    assert warnings == [
        "Warning: the run was begun by a version of hsdlab that did not note all of its weights, its settings in the "
        "model's config, its tokenizer, its chat template or its special tokens, its options of decoding: whether they "
        "are the same now is not known."
    ]


@pytest.mark.slow
def test_an_argument_that_an_earlier_version_did_not_have_changes_nothing(evaluate, decoded, tmp_path):
    evaluate("compare", f"--strategies=[{HSD}]")
    file = tmp_path / "out" / "run.json"
    before = json.loads(file.read_text(encoding="utf-8"))
    for strategy in before["config"]["strategies"]:
        del strategy["init_args"]["prompt_min_exit"], strategy["init_args"]["prompt_max_exit"]
    file.write_text(json.dumps(before), encoding="utf-8")
    decoded.clear()
    evaluate("compare", f"--strategies=[{HSD}]")
    assert decoded == []


@pytest.mark.parametrize("subcommand", ["test", "report"])
def test_a_changed_prediction_is_refused(subcommand, evaluate, refused, monkeypatch, tmp_path):
    evaluate("test")
    file = tmp_path / "out" / "predictions.jsonl"
    *lines, last = file.read_bytes().split(b"\n")
    record = json.loads(lines[2])
    record["scores"]["rougeL"] = 1.0
    lines[2] = json.dumps(record, ensure_ascii=False).encode()
    file.write_bytes(b"\n".join([*lines, last]))
    expected = f"{file}, line 3: the prediction was changed after the run had written it"
    if subcommand == "test":
        assert expected in refused("test")
        return
    with pytest.raises(SystemExit) as end:
        main(["report", str(tmp_path / "out")])
    assert expected in str(end.value)


@pytest.mark.slow
def test_overwrite_leaves_the_users_files(evaluate, tmp_path):
    evaluate("test", "--skip=HSD", "--skip.max_exit=2")
    (tmp_path / "out" / "predictions_gold.jsonl").write_text("mine", encoding="utf-8")
    evaluate("compare", "--strategies=[]", "--overwrite")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in contents(tmp_path / "out")}
    assert "predictions.jsonl" not in names
    assert {"predictions_gold.jsonl", "predictions/01_FullDepth.jsonl", "comparison.json"} <= names
    assert not any("HSD" in name for name in names)


def test_a_run_that_fails_before_its_first_batch_leaves_nothing(evaluate, monkeypatch, tmp_path):
    def fails(*_):
        raise RunError("no")

    with monkeypatch.context() as patch:
        patch.setattr(hsdlab.modules.decode.DecodeModule, "_decode", fails)
        with pytest.raises(RunError, match="no"):
            evaluate("test")
        assert not (tmp_path / "out").exists()
    evaluate("test", "--model.num_beams=1")


@pytest.mark.slow
def test_on_a_disk_that_fills_up_a_run_says_so_and_goes_on_later(evaluate, small_disk, tmp_path):  # noqa: F811
    evaluate("compare", f"--strategies=[{HSD}]")
    whole = tmp_path / "out"
    size = sum(len(content) for content in contents(whole).values())
    said = set()
    for share in (0.02, 0.03, 0.3, 0.6, 0.9):  # each time it comes a little further
        out = small_disk(int(share * size)) / "out"
        with pytest.raises(RunError, match=r" could not be written: no space left on device\. Free some") as error:
            evaluate("compare", f"--strategies=[{HSD}]", f"--output={out}")
        assert str(error.value).startswith(str(out))
        said.add(Path(str(error.value).partition(" could not")[0]).suffix)
    assert len(said) >= 3, said
    out = small_disk(4 * size) / "out"
    evaluate("compare", f"--strategies=[{HSD}]", f"--output={out}")
    for file in (out / "predictions").iterdir():
        assert without_costs(read_records(file)) == without_costs(read_records(whole / "predictions" / file.name))
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


def test_other_versions_are_warned_of_and_noted(evaluate, tmp_path, capsys):
    evaluate("test")
    file = tmp_path / "out" / "run.json"
    before = json.loads(file.read_text(encoding="utf-8"))
    assert before["earlier"] == []
    before["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(before), encoding="utf-8")
    capsys.readouterr()
    for _ in range(2):
        evaluate("test")
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning")]
    now = json.loads(file.read_text(encoding="utf-8"))
    assert warnings == [f"Warning: the run was made with torch 1.0 so far; it is {now['versions']['torch']} now."]
    assert [session["versions"]["torch"] for session in now["earlier"]] == ["1.0"]


def test_a_precision_that_the_device_lacks_is_refused(refused):
    assert "--trainer.precision=16-mixed is not available on the CPU" in refused("test", "--trainer.precision=16-mixed")
