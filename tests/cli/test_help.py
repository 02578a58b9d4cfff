"""What a command's --help prints: examples that parse, its own options first and in short, the rest on request."""

import contextlib
import re
import shlex
import sys

import pytest

from hsdlab.cli.evaluate import EvaluateCLI
from hsdlab.cli.help import EXAMPLES
from hsdlab.cli.train import TrainCLI
from hsdlab.program import VALIDATE_LOSS
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
    assert len(lines) <= (90 if cli is EvaluateCLI else 120) + 5
    assert max(map(len, lines)) <= 80
    named = set(re.findall(r"^  --([\w.]+)", text, re.MULTILINE))
    everything = printed(monkeypatch, capsys, cli, command, "--help=all")
    options = {name for name in re.findall(r"--([\w.]+)", everything) if not name.endswith(".help")}
    ours = {name for name in options if not name.startswith("trainer")} - {"help", "model"}
    assert {name for name in ours if "--" + name + " " in everything or "--" + name + "+" in everything} <= named | ours
    assert ours - named <= {"skip_default", "skip_unset"}
    assert everything.index("\n  --model.name ") < everything.index("\n  --trainer.devices ")
    assert "--trainer.max_epochs" not in everything.partition("\n\n")[0]


@pytest.mark.parametrize(("cli", "command"), COMMANDS)
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
    assert "--model.num_beams=4 Beams of the search, 4 as in the HSD paper." in said
    assert "--model.dtype=float32 Of the weights. Or bfloat16, float16, float64, auto." in said
    assert "--model.name=NAME Required. " in said
    assert "--data=DataFolder The class of the data." in said
    assert "--strategies=STRATEGIES Required. What to compare. There are CALM, Compose, " in said
    assert "--overwrite Start anew" in said
    assert "`python evaluate.py compare --help=all` explains every option in full." in said
