"""The commands by name: which module each reaches, and what is answered before anything heavy is imported."""

import json
import os
import shlex
import subprocess
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec

import pytest

import hsdlab.cli.evaluate
import hsdlab.cli.train
from hsdlab import __version__
from hsdlab.cli import commands, names
from hsdlab.cli.evaluate import EvaluateCLI
from hsdlab.cli.report import REPORT
from hsdlab.cli.train import TrainCLI
from hsdlab.program import hyphenated
from tests.tiny_runs import ParseOnly, run

HEAVY = {"torch", "lightning", "transformers", "torchmetrics", "jsonargparse", "scipy", "matplotlib", "numpy"}
LIGHT = [
    (["--help"], 0),
    ([], 2),
    (["cmpare"], 2),
    (["--version"], 0),
    (["configs", "list"], 0),
    (["configs", "show", "experiment/quickstrt"], 2),
    (["models"], 0),
    (["compare", "--config=experiment/quickstrt"], 2),
    (["fit", "--config", "nowhere.yaml"], 2),
]


@pytest.fixture
def reached(monkeypatch, tmp_path):
    """Note which script's command line runs, and with what; two configs lie in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("test", "mine.yaml"):
        (tmp_path / name).write_text("output: runs/mine\n")
    calls = []
    for script in ("evaluate", "train"):
        module = getattr(hsdlab.cli, script)
        monkeypatch.setattr(module, "main", lambda args, script=script: calls.append((script, args)))
    return calls


def test_the_names_are_those_of_the_command_lines():
    assert set(names.EVALUATE) == {*EvaluateCLI.subcommands(), REPORT}
    assert set(names.TRAIN) == set(TrainCLI.subcommands())


@pytest.mark.parametrize("program", ["main", "evaluate", "train"])
def test_nothing_heavy_is_imported_before_a_command_is_known(program):
    """One process for all: what one of them imported, the next would show too."""
    light = LIGHT if program == "main" else LIGHT[:4]
    code = f"""
import contextlib, io, json, sys
from hsdlab.cli import commands
codes = []
for args in {[args for args, _ in light]!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            commands.{program}(args)
            codes.append(0)
        except SystemExit as end:
            codes.append(end.code or 0)
print(json.dumps([codes, sorted({HEAVY!r} & set(sys.modules))]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[code for _, code in light], []]


def test_the_overview_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        commands.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out.splitlines()
    shown = [line.split()[0] for line in said if line.startswith("  ") and not line.startswith("  hsdlab")]
    trained = ["fit", "fit-exit-classifier", "fit-exit-router", "validate-loss"]
    assert shown == [*map(hyphenated, names.EVALUATE), *trained, "demo", "data", "configs", "models"]
    assert max(map(len, said)) <= 110


@pytest.mark.parametrize(
    ("start", "word", "meant", "program"),
    [
        (commands.main, "cmpare", "compare", "hsdlab"),
        (commands.main, "fit_exit_clasifier", "fit-exit-classifier", "hsdlab"),
        (commands.main, "config", "configs", "hsdlab"),
        (commands.evaluate, "tset", "test", "python evaluate.py"),
        (commands.train, "validte", "validate", "python train.py"),
    ],
)
def test_an_unknown_command_names_the_nearest(start, word, meant, program, reached, capsys):
    with pytest.raises(SystemExit) as end:
        start([word, "--help"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: unknown command {word!r}. Did you mean {meant!r}? The commands are ")
    assert said.endswith(f"see `{program} --help`.\n")
    assert reached == []


def test_a_word_that_is_near_nothing_is_met_with_the_list_alone(capsys):
    with pytest.raises(SystemExit):
        commands.train(["compile"])
    commands_of_it = "fit, fit-exit-classifier, fit-exit-router, validate"
    expected = f"error: unknown command 'compile'. The commands are {commands_of_it}: see "
    assert capsys.readouterr().err.startswith(expected)


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        commands.main(["--version"])
    assert capsys.readouterr().out == f"hsdlab {__version__}\n"


@pytest.mark.parametrize(
    ("start", "args", "expected"),
    [
        (commands.main, ["compare", "--x"], ("evaluate", ["compare", "--x"])),
        (commands.main, ["validate"], ("evaluate", ["validate"])),
        (commands.main, ["report", "a"], ("evaluate", ["report", "a"])),
        (commands.main, ["--config", "test", "fit", "--help"], ("train", ["--config", "test", "fit", "--help"])),
        (commands.main, ["validate-loss", "--x"], ("train", ["validate", "--x"])),
        (commands.main, ["--debug", "validate_loss"], ("train", ["--debug", "validate"])),
        (commands.main, ["fit-exit-classifier"], ("train", ["fit_exit_classifier"])),
        (commands.train, ["fit-exit-classifier"], ("train", ["fit_exit_classifier"])),
        (commands.train, ["validate"], ("train", ["validate"])),
        (commands.evaluate, ["-c=mine.yaml", "validate"], ("evaluate", ["-c=mine.yaml", "validate"])),
    ],
)
def test_a_command_reaches_its_command_line(start, args, expected, reached):
    start(args)
    assert reached == [expected]


def test_a_config_alone_may_name_the_command_of_a_script(reached, capsys):
    commands.evaluate(["--config", "whole.yaml"])
    commands.train(["--config=whole.yaml"])
    assert reached == [("evaluate", ["--config", "whole.yaml"]), ("train", ["--config=whole.yaml"])]
    with pytest.raises(SystemExit):
        commands.main(["--config=whole.yaml"])
    assert capsys.readouterr().err.startswith("error: no command given. ")


def test_the_examples_of_the_overview_parse(monkeypatch):
    lines = [shlex.split(line) for line in commands.EXAMPLES.splitlines() if line.startswith("  hsdlab compare")]
    assert len(lines) == 2
    for _, *args in lines:
        assert run(monkeypatch, *args, cli=ParseOnly).subcommand == "compare"


def test_the_arguments_of_the_process_stay_as_they_were_typed(reached, monkeypatch):
    """Lightning starts the other processes of a run with them, and run.json notes them."""
    monkeypatch.setattr(sys, "argv", ["hsdlab", "compare", "--x"])
    commands.main()
    monkeypatch.setattr(sys, "argv", typed := ["hsdlab", "validate-loss", "--x"])
    commands.main()
    assert reached == [("evaluate", None), ("train", ["validate", "--x"])]
    assert sys.argv is typed
    assert typed == ["hsdlab", "validate-loss", "--x"]


@pytest.mark.parametrize("start", [commands.main, commands.evaluate])
def test_a_class_in_the_current_folder_is_found_after_what_is_installed(start, monkeypatch, tmp_path):
    (tmp_path / "a_module_of_mine.py").write_text("here = True")
    (tmp_path / "yaml.py").write_text("raise AssertionError('in place of the package')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    found = []
    monkeypatch.setattr(hsdlab.cli.evaluate, "main", lambda args: found.append(find_spec("a_module_of_mine")))
    start(["test"])
    start(["test"])
    assert [each.origin for each in found] == [str(tmp_path / "a_module_of_mine.py")] * 2
    assert sys.path.count(str(tmp_path)) == 1
    assert PathFinder.find_spec("yaml").origin != str(tmp_path / "yaml.py")


def test_a_light_command_ends_with_a_sentence(capsys, tmp_path):
    (tmp_path / "quickstart.yaml").touch()
    with pytest.raises(SystemExit) as end:
        commands.main(["configs", "copy", "experiment/quickstart", "--to", str(tmp_path)])
    refused = "exists: remove it, or give another file or folder with --to."
    assert end.value.code == f"error: {tmp_path}/quickstart.yaml {refused}"
    with pytest.raises(SystemExit) as end:
        commands.main(["configs", "show", "no/such"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is no file no/such and no packaged config of that name.")
    with pytest.raises(ValueError, match="no packaged config"):
        commands.main(["configs", "show", "no/such", "--debug"])


@pytest.mark.parametrize("program", ["main", "evaluate", "train"])
@pytest.mark.parametrize(
    ("given", "then"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["nothing", "a count", "a policy"],
)
def test_threads_wait_awake_for_a_short_time_unless_the_user_says_otherwise(program, given, then):
    code = f"""
import contextlib, os, sys
from hsdlab.cli import commands
with contextlib.suppress(SystemExit):
    commands.{program}(["models"])
print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
"""
    variables = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in variables} | given
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split()[-2:] == [then, "False"]
