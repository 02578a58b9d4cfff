"""What a command's --help prints: examples that parse, its own options first and in short, the rest on request."""

import contextlib
import inspect
import re
import shlex
import sys

import pytest
from lightning.pytorch import Trainer

from hsdlab.cli.commands import BESIDE, main
from hsdlab.cli.evaluate import EvaluateCLI
from hsdlab.cli.help import EXAMPLES
from hsdlab.cli.train import TrainCLI
from hsdlab.program import VALIDATE_LOSS
from tests.law_cells import in_turns
from tests.tiny_runs import ParseOnly, run

COMMANDS = [(EvaluateCLI, name) for name in EvaluateCLI.subcommands()]
COMMANDS += [(TrainCLI, name) for name in TrainCLI.subcommands()]


class ParseOnlyTraining(TrainCLI):
    """Parses the command line and stops."""

    before_instantiate_classes = ParseOnly.before_instantiate_classes
    instantiate_classes = ParseOnly.instantiate_classes
    after_instantiate_classes = ParseOnly.after_instantiate_classes
    _run_subcommand = ParseOnly._run_subcommand


def printed(monkeypatch, capsys, cli, *words, program="hsdlab"):
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit) as end:
        cli(list(words))
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("cli", "command"), COMMANDS)
def test_the_help_is_short_and_names_every_option_of_ours(cli, command, monkeypatch, capsys):
    text = printed(monkeypatch, capsys, cli, command, "--help")
    lines = text.splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 80
    named = re.findall(r"^  --([\w.]+)", text, re.MULTILINE)
    everything = printed(monkeypatch, capsys, cli, command, "--help=all")
    options = set(re.findall(r"^ +--([\w.]+)(?<!help)[ ,]", everything, re.MULTILINE))
    assert {name for name in options - {"model", "trainer"} if not name.startswith("trainer.")} <= set(named)
    assert {name for name in named if not name.startswith("data.")} <= {*options, "config"}  # of a class
    order = [name.split(".")[0] for name in named if name.startswith(("model.", "data"))]
    assert order == sorted(order, reverse=True)  # the model's, then the data's
    assert text.count("`") % 2 == 0


@pytest.mark.parametrize(("cli", "command"), COMMANDS)
def test_the_full_help_ends_with_the_options_of_the_trainer(cli, command, monkeypatch, capsys):
    everything = printed(monkeypatch, capsys, cli, command, "--help=all")
    of_trainer = set(inspect.signature(Trainer).parameters)
    assert {f"trainer.{name}" for name in of_trainer - {"default_root_dir"}} <= set(
        re.findall(r"^ +--([\w.]+)(?<!help)[ ,]", everything, re.MULTILINE)
    )
    assert everything.index("\n  --model.name ") < everything.index("\n  --trainer.devices ")
    assert "--trainer.max_epochs" not in everything.partition("\n\n")[0]


@pytest.mark.parametrize("command", [name for name in BESIDE if name != "demo"])
def test_the_help_of_a_light_command_fits_the_terminal(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hsdlab"])
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert not end.value.code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: hsdlab {command}")
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 100


@pytest.mark.parametrize(("cli", "command"), in_turns(COMMANDS, 3))
def test_its_examples_parse(cli, command, monkeypatch, capsys):
    text = printed(monkeypatch, capsys, cli, command, "--help").replace("\\\n", "")
    examples = text.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    loss = cli is TrainCLI and command == "validate"
    assert len(examples) == len(EXAMPLES[VALIDATE_LOSS if loss else command])
    for line in examples:
        program, name, *words = shlex.split(line)
        assert (program, name) == ("hsdlab", VALIDATE_LOSS if loss else command.replace("_", "-"))
        with contextlib.suppress(SystemExit):
            run(monkeypatch, command, *words, cli=ParseOnly if cli is EvaluateCLI else ParseOnlyTraining)
        assert capsys.readouterr().err == ""


def test_a_row_shows_default_choices_and_what_has_to_be_given(monkeypatch, capsys):
    text = printed(monkeypatch, capsys, EvaluateCLI, "compare", "--help", program="evaluate.py")
    assert text.startswith(
        "usage: python evaluate.py compare [options]\n\nDecode the test split under several strategies;"
    )
    said = " ".join(text.split())
    assert "--model.num_beams=4 Beams of beam search, 4 as in the HSD paper." in said
    assert "--model.dtype=float32 Of the weights. Or bfloat16, float16, float64, auto." in said
    assert "--model.name=NAME Required. " in said
    assert "--data=DataFolder The class of the data." in said
    assert "--strategies=[FullDepth,HSD,SkipDecode,CALM] The strategies to compare. There are CALM, Compose, " in said
    assert 'such as `{"do_sample": true, ' in said
    assert "--overwrite Start over" in said
    assert "`python evaluate.py compare --help=all` explains every option in full." in said


def test_calibrate_has_to_be_given_strategies(monkeypatch, capsys):
    text = printed(monkeypatch, capsys, EvaluateCLI, "calibrate", "--help")
    assert "--strategies=STRATEGIES     Required." in text
