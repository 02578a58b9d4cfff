"""Strategies written as calls, on the command line."""

import pytest

from hsdlab import CALM, HSD, FullDepth, SkipDecode, UserError
from hsdlab.cli.strategy_words import with_strategies_written_out
from tests.tiny_runs import ParseOnly, run

CLASSES = {each.__name__: each for each in (CALM, HSD, FullDepth, SkipDecode)}


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--strategies=[HSD(2, 0, 8), CALM(0.9)]", [HSD(2, 0, 8), CALM(0.9)]),
        ("--strategies=HSD", [HSD()]),
        ("--strategies=HSD(max_exit=3), SkipDecode", [HSD(max_exit=3), SkipDecode()]),
        ("--strategies=[FullDepth, HSD]", [FullDepth(), HSD()]),
        ("--strategies=[hsdlab.HSD(num_skipped=2), {class_path: CALM}]", None),  # half Python, half YAML
        ("--strategies=[{class_path: HSD, init_args: {max_exit: 3}}, CALM]", [HSD(max_exit=3), CALM()]),
        ("--strategies=hsdlab.HSD(num_skipped=2)", [HSD(num_skipped=2)]),
    ],
)
def test_a_list_of_strategies(option, expected, monkeypatch, capsys):
    if expected is None:
        with pytest.raises(SystemExit):
            run(monkeypatch, "compare", "--model.name=m", option, cli=ParseOnly)
        assert capsys.readouterr().err.startswith("error: ")
        return
    made = run(monkeypatch, "compare", "--model.name=m", "--data.folder=d", option, cli=ParseOnly)
    strategies = made.parser.instantiate(made.config, instantiate_groups=False).compare.strategies
    assert [repr(each) for each in strategies] == [repr(each) for each in expected]


def test_the_words_of_an_option_may_stand_apart(monkeypatch):
    words = ["compare", "--model.name=m", "--data.folder=d", "--strategies", "[HSD(2, 0, 8)]"]
    made = run(monkeypatch, *words, cli=ParseOnly)
    assert made.config.compare.strategies[0].init_args.num_skipped == 2


def test_one_strategy_whose_arguments_later_options_change(monkeypatch):
    words = ["test", "--model.name=m", "--data.folder=d", "--skip=HSD(2, 0, 8)", "--skip.max_exit=9"]
    made = run(monkeypatch, *words, cli=ParseOnly)
    assert repr(made.parser.instantiate(made.config, instantiate_groups=False).test.skip) == repr(HSD(2, 0, 9))


def test_the_first_settings_of_a_search(monkeypatch):
    made = run(monkeypatch, "tune", "--model.name=m", "--data.folder=d", "--first=[HSD(2, 0, 8)]", cli=ParseOnly)
    assert made.config.tune.first[0].init_args.max_exit == 8


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--strategies=[HSD(2, 0, 8, 'linear', 5, 6, 7, 8)]", "HSD takes num_skipped, min_exit, max_exit"),
        ("--strategies=HSD(2, num_skipped=3)", "each once"),
        ("--strategies=HSD(open('x'))", "no plain value"),
        ("--strategies=mine.Own(3)", r"mine\.Own\(name=value\)"),
    ],
)
def test_calls_that_cannot_be_taken(option, says):
    with pytest.raises(UserError, match=says):
        with_strategies_written_out(["compare", option], CLASSES)


@pytest.mark.parametrize(
    "word", ["--data.folder=HSD(2)", "--strategies=[]", "--strategies={}", "--skip=HSD", "--skip="]
)
def test_other_words_stay(word):
    assert with_strategies_written_out(["compare", word, "--x", "y"], CLASSES) == ["compare", word, "--x", "y"]


def test_a_misspelt_class_is_named_with_the_nearest(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "compare", "--model.name=m", "--data.folder=d", "--strategies=[HDS(2, 0, 8)]", cli=ParseOnly)
    assert "HSD" in capsys.readouterr().err
