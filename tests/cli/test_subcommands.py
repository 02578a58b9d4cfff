"""Only the parser of the subcommand that is named is built."""

import re
import sys

import pytest

from hsdlab.cli import EvaluateCLI
from tests.tiny_runs import ParseOnly

NAMES = ["validate", "test", "predict", "compare", "calibrate", "tune", "bench", "inspect"]


@pytest.mark.parametrize("from_the_process", [True, False])
def test_a_named_subcommand_is_built_alone(monkeypatch, from_the_process):
    args = ["test", "--config=configs/experiment/quickstart.yaml"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *args] if from_the_process else ["evaluate.py"])
    cli = ParseOnly() if from_the_process else ParseOnly(args)
    assert list(cli._subcommand_parsers) == ["test"]
    assert cli.subcommand == "test"
    assert list(EvaluateCLI.subcommands()) == NAMES


@pytest.mark.parametrize("args", [["--help"], ["tset"]])
def test_without_a_known_name_all_are_named(monkeypatch, capsys, args):
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    with pytest.raises(SystemExit):
        ParseOnly(args)
    said = "".join(capsys.readouterr())
    assert [name for name in NAMES if not re.search(rf"\b{name}\b", said)] == []
