"""The demo: two models side by side, the first table early, and commands that work as they are printed."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import hsdlab.modules.decode
from hsdlab import HSD, FullDepth
from hsdlab.cli.demo import next_steps
from hsdlab.cli.train import TrainCLI
from hsdlab.data import JSONLines
from hsdlab.records.comparison import Comparison
from hsdlab.runs import demo as demo_module
from hsdlab.runs.demo import MODELS, STRATEGIES, demo
from tests.tiny_checkpoints import tiny_llama, tiny_tokenizer
from tests.tiny_runs import ParseOnly, run


@pytest.fixture
def tiny_models(monkeypatch):
    """A tiny model under each name, of other weights."""
    loaded = []

    def load_model(name, **options):
        torch.manual_seed(len(loaded))
        loaded.append(name)
        return tiny_llama(), tiny_tokenizer()

    monkeypatch.setattr(hsdlab.modules.decode, "load_model", load_model)
    return loaded


@pytest.fixture
def data(tmp_path):
    lines = "".join(f'{{"id": "{n}", "source": "a {n}", "references": ["b", "c"]}}\n' for n in range(3))
    (tmp_path / "test.jsonl").write_text(lines, encoding="utf-8")
    return JSONLines(str(tmp_path), batch_size=2)


def test_both_models_stand_in_one_table_and_one_picture(tiny_models, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo_module, "MAX_NEW_TOKENS", 4)
    strategies = [FullDepth(), HSD(1, 0, 2), HSD(1, 0, 1)]
    found = demo(tmp_path / "out", strategies=strategies, data=data)
    assert tiny_models == list(MODELS.values())
    assert [(row.run, row.name) for row in found.rows] == [
        (name, repr(strategy)) for name in MODELS for strategy in strategies
    ]
    assert found.baseline.run == "trained plainly"
    assert Comparison.read(tmp_path / "out/comparison.json").rows[4].run == "trained to skip"
    printed = capsys.readouterr().out
    tables = [match.start() for match in re.finditer("After [0-9]+ s: the picture", printed)]
    assert len(tables) == 2
    assert printed.index("4 of 6") < tables[0] < printed.index("5 of 6") < tables[1]
    table = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] == [
        "FullDepth",
        "HSD(1, 0, 2)",
        "HSD(1, 0, 1)",
    ]
    assert "the 3 examples" in " ".join(table.split())
    assert (tmp_path / "out/picture.png").read_bytes().startswith(b"\x89PNG")
    for name in ("trained_plainly", "trained_to_skip"):
        assert (tmp_path / "out" / name / "pareto.png").exists()
        assert len(list((tmp_path / "out" / name / "predictions").iterdir())) == 3


def test_there_are_six_strategies_and_full_depth_comes_first():
    assert len({repr(strategy) for strategy in STRATEGIES}) == 6
    assert isinstance(STRATEGIES[0], FullDepth)


class ParseOnlyTraining(TrainCLI):
    """Parses the command line of train.py and stops."""

    before_instantiate_classes = ParseOnly.before_instantiate_classes
    instantiate_classes = ParseOnly.instantiate_classes
    after_instantiate_classes = ParseOnly.after_instantiate_classes
    _run_subcommand = ParseOnly._run_subcommand


def test_what_the_user_has_changed_in_the_folder_stays(tmp_path):
    next_steps(tmp_path)
    files = {tmp_path / "my_strategy.py": "mine = True", tmp_path / "your_data/test.jsonl": "{}"}
    for file, content in files.items():
        file.write_text(content)
    next_steps(tmp_path)
    assert {file: file.read_text() for file in files} == files


def test_the_three_commands_can_be_run_as_they_are_printed(tmp_path, monkeypatch):
    text = next_steps(tmp_path / "my demo").replace("\\\n", "")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    ")]
    assert len(commands) == 3
    resolved = {}
    for words in commands:
        if words[0].startswith("PYTHONPATH="):
            monkeypatch.syspath_prepend(words[0].partition("=")[2])
            words = words[1:]
        program, *arguments = words
        assert Path(program).name == "hsdlab"
        made = run(monkeypatch, *arguments, cli=ParseOnlyTraining if arguments[0] == "fit" else ParseOnly)
        resolved[made.subcommand] = made.parser.instantiate(made.config, instantiate_groups=False)[made.subcommand]
    assert len(resolved["compare"].data.examples("test")) == 8
    assert [type(each).__name__ for each in resolved["compare"].strategies] == ["FullDepth", "HSD"]
    assert resolved["test"].skip.layers_at(0, 5, 10) == (0, 2, 4)
    assert len(resolved["test"].data.examples("test")) == 48
    assert resolved["fit"].output == str(tmp_path / "my demo/my_training")
