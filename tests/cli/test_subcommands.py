"""One subcommand: its parser alone is built; seed, home folder and values as they are given."""

import json
import re
import sys

import lightning.pytorch.cli
import pytest
import torch

from hsdlab.cli import EvaluateCLI
from tests.tiny_runs import ParseOnly, options, run

NAMES = ["validate", "test", "predict", "compare", "calibrate", "tune", "bench", "inspect", "count_tokens"]


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


def test_no_seed_is_set_where_none_is_wanted(monkeypatch):
    words = ("test", "--model.name=m", "--data=Docstrings")
    torch.manual_seed(7)
    assert run(monkeypatch, *words, "--seed_everything=false", cli=ParseOnly).config.test.seed_everything is False
    assert torch.initial_seed() == 7
    run(monkeypatch, *words, "--seed_everything=3", cli=ParseOnly)
    assert torch.initial_seed() == 3


@pytest.mark.parametrize(
    ("words", "on"),
    [
        (["--lossless"], True),
        (["--lossless", "--trials=3"], True),
        (["--lossless=true"], True),
        (["--lossless", "false"], False),
        ([], False),
    ],
)
def test_a_switch_needs_no_value(words, on, monkeypatch):
    words = ("tune", "--model.name=m", "--data=Docstrings", *words)
    assert run(monkeypatch, *words, cli=ParseOnly).config.tune.lossless is on


@pytest.mark.parametrize("word", ["--output=~/x", "--data.folder=~/x", "--model.adapter=~/x"])
def test_the_home_folder_is_written_out_in_paths(word, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = ("test", "--model.name=m", "--data=DataFolder", "--data.folder=d", word, "--data.prompt=~/x {source}")
    config = run(monkeypatch, *words, cli=ParseOnly).config.test
    paths = {"--output": config.output, "--data.folder": config.data.init_args.folder}
    paths |= {"--model.adapter": config.model.adapter}
    assert paths[word.partition("=")[0]] == "/home/me/x"
    assert config.data.init_args.prompt == "~/x {source}"


@pytest.mark.parametrize(("word", "seeded", "recorded"), [("7", [7], 7), ("false", [], None)])
def test_the_seed_is_set_and_recorded_unless_none_is_wanted(word, seeded, recorded, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(lightning.pytorch.cli, "seed_everything", lambda seed, **_: calls.append(seed) or seed)
    run(monkeypatch, "test", *options(tmp_path), f"--seed_everything={word}", f"--output={tmp_path / 'out'}")
    assert calls == seeded
    assert json.loads((tmp_path / "out/run.json").read_text())["seed"] == recorded
