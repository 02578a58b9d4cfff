"""Options with a new name: the old one works on the command line and in configs, with a warning."""

import pytest
import yaml

from hsdlab.cli.renamed import RENAMED, with_new_keys, with_new_options
from hsdlab.errors import UserError
from tests.tiny_runs import ParseOnly, run

TABLE = {"tune": {"proposals": "trials", "model.beams": "model.num_beams"}}


def test_options_after_the_subcommand_get_their_new_names():
    args = ["tune", "--proposals=3", "--proposals+=4", "--model.beams", "--proposals", "--proposals_else=1"]
    with pytest.warns(FutureWarning, match="tune: --model.beams is now called --model.num_beams"):
        new = with_new_options(args, TABLE)
    assert new == ["tune", "--trials=3", "--trials+=4", "--model.num_beams", "--trials", "--proposals_else=1"]


@pytest.mark.filterwarnings("error")
def test_other_subcommands_keep_the_name():
    for args in (["compare", "--proposals=3"], ["--proposals=3", "tune"], []):
        assert with_new_options(args, TABLE) == args
    for text in ("trials: 3  # as it is\n", "other: {proposals: 3}", "- proposals", "{ no yaml", ""):
        assert with_new_keys(text, "tune", TABLE) == text
    assert with_new_keys("proposals: 3", "compare", TABLE) == "proposals: 3"


@pytest.mark.parametrize(
    ("subcommand", "old", "new"),
    [
        ("tune", {"proposals": 3, "model": {"beams": 2}}, {"trials": 3, "model": {"num_beams": 2}}),
        ("tune", {"proposals+": [3]}, {"trials+": [3]}),
        (None, {"tune": {"proposals": 3}}, {"tune": {"trials": 3}}),
    ],
)
def test_keys_of_a_config_get_their_new_names(subcommand, old, new):
    with pytest.warns(FutureWarning, match="tune: proposals is now called trials"):
        assert yaml.safe_load(with_new_keys(yaml.safe_dump(old), subcommand, TABLE)) == new


def test_both_names_in_one_config_are_refused():
    with pytest.raises(UserError, match="proposals and trials, which are one option of tune: keep trials"):
        with_new_keys("{proposals: 3, trials: 4}", "tune", TABLE)


def test_the_command_line_takes_old_names(monkeypatch, tmp_path):
    monkeypatch.setitem(RENAMED, "tune", TABLE["tune"])
    (tmp_path / "old.yaml").write_text("proposals: 3\nmodel: {name: m, beams: 2}\ndata: Docstrings\n", encoding="utf-8")
    (tmp_path / "whole.yaml").write_text("tune: {proposals: 4}\n", encoding="utf-8")
    with pytest.warns(FutureWarning, match=r"tune: model\.beams is now called model\.num_beams"):
        config = run(monkeypatch, "tune", f"--config={tmp_path}/old.yaml", cli=ParseOnly).config.tune
    assert (config.trials, config.model.num_beams) == (3, 2)
    options = ["--model.name=m", "--data=Docstrings", "--model.beams=5"]
    with pytest.warns(FutureWarning, match=r"--model\.beams is now called --model\.num_beams"):
        config = run(monkeypatch, f"--config={tmp_path}/whole.yaml", "tune", *options, cli=ParseOnly).config.tune
    assert (config.trials, config.model.num_beams) == (4, 5)


def test_only_the_last_part_of_a_name_differs():
    for names in (*RENAMED.values(), TABLE["tune"]):
        for old, new in names.items():
            assert old.rpartition(".")[0] == new.rpartition(".")[0]
