"""Strategies written as calls, on the command line and in configs."""

import pytest

from hsdlab import CALM, HSD, Compose, FullDepth, SkipDecode, UserError, Verified
from hsdlab.cli.strategy_words import with_calls_written_out, with_strategies_written_out
from tests.tiny_runs import ParseOnly, run

CLASSES = {each.__name__: each for each in (CALM, Compose, FullDepth, HSD, SkipDecode, Verified)}


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
        ("--strategies=[FullDepth, Verified(HSD(2, 0, 8), 4)]", [FullDepth(), Verified(HSD(2, 0, 8), 4)]),
        ("--strategies=Verified(num_draft_tokens=2, draft=FullDepth)", [Verified(FullDepth(), 2)]),
        ("--strategies=Verified(hsdlab.HSD(max_exit=3))", [Verified(HSD(max_exit=3))]),
        ("--strategies=[Verified(Compose(HSD(2, 0, 8), CALM(0.9)))]", [Verified(Compose(HSD(2, 0, 8), CALM(0.9)))]),
        ("--strategies=[{class_path: Verified, init_args: {draft: {class_path: CALM}}}]", [Verified(CALM())]),
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


@pytest.mark.parametrize(
    "words",
    [
        ["--skip=Verified(HSD(2, 0, 8), 3)"],
        ["--skip", "Verified(HSD(2, 0, 8), 3)"],
        ["--skip=Verified", "--skip.draft=HSD(2, 0, 8)", "--skip.num_draft_tokens=3"],
        ["--skip=Verified(FullDepth, 3)", "--skip.draft", "HSD(2, 0, 8)"],
        ["--skip=Verified(CALM(0.9), 3)", "--skip.draft=HSD", "--skip.draft.num_skipped=2", "--skip.draft.max_exit=8"],
    ],
)
def test_a_draft_of_one_strategy(words, monkeypatch):
    made = run(monkeypatch, "test", "--model.name=m", "--data.folder=d", *words, cli=ParseOnly)
    skip = made.parser.instantiate(made.config, instantiate_groups=False).test.skip
    assert repr(skip) == repr(Verified(HSD(2, 0, 8), 3))


CONFIGS = {
    "skip: HSD(2, 0, 8)": [HSD(2, 0, 8)],
    "skip: Verified(HSD(2, 0, 8), 3)": [Verified(HSD(2, 0, 8), 3)],
    "skip: {class_path: Verified, init_args: {draft: 'HSD(2, 0, 8)', num_draft_tokens: 3}}": [
        Verified(HSD(2, 0, 8), 3)
    ],
    "skip:\n  class_path: Verified\n  init_args:\n    draft: HSD(2, 0, 8)\n": [Verified(HSD(2, 0, 8))],
    "strategies:\n- FullDepth\n- CALM(0.9)\n- Verified(HSD(2, 0, 8))\n": [
        FullDepth(),
        CALM(0.9),
        Verified(HSD(2, 0, 8)),
    ],
    "strategies: [{class_path: Verified, init_args: {draft: 'Compose(HSD(2, 0, 8), CALM(0.9))'}}]": [
        Verified(Compose(HSD(2, 0, 8), CALM(0.9)))
    ],
}


@pytest.mark.parametrize("text", CONFIGS)
def test_strategies_in_a_config(text, monkeypatch, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    command, given = ("test", "skip") if text.startswith("skip") else ("compare", "strategies")
    words = [command, "--model.name=m", "--data.folder=d", f"--config={tmp_path / 'mine.yaml'}"]
    made = run(monkeypatch, *words, cli=ParseOnly)
    found = made.parser.instantiate(made.config, instantiate_groups=False)[command][given]
    assert list(map(repr, found if command == "compare" else [found])) == list(map(repr, CONFIGS[text]))


def test_the_strategy_of_a_config_is_a_list_of_one_for_compare(monkeypatch, tmp_path):
    (tmp_path / "mine.yaml").write_text("skip: Verified(HSD(2, 0, 8))")
    words = ["compare", "--model.name=m", "--data.folder=d", f"--config={tmp_path / 'mine.yaml'}"]
    made = run(monkeypatch, *words, cli=ParseOnly)
    (found,) = made.parser.instantiate(made.config, instantiate_groups=False).compare.strategies
    assert repr(found) == repr(Verified(HSD(2, 0, 8)))


@pytest.mark.parametrize(
    "word",
    [
        "--trainer.callbacks=[Verified(HSD(2, 0, 8))]",
        "--trainer.callbacks+=Verified(HSD(2, 0, 8))",
        "trainer:\n  callbacks:\n  - Verified(HSD(2, 0, 8))\n  - class_path: ModelSummary\n",
    ],
)
def test_strategies_among_callbacks(word, monkeypatch, tmp_path):
    if not word.startswith("--"):
        (tmp_path / "mine.yaml").write_text(word)
        word = f"--config={tmp_path / 'mine.yaml'}"
    made = run(monkeypatch, "test", "--model.name=m", "--data.folder=d", word, cli=ParseOnly)
    found = made.parser.instantiate(made.config, instantiate_groups=False).test.trainer.callbacks
    assert repr((found if isinstance(found, list) else [found])[0]) == repr(Verified(HSD(2, 0, 8)))


def test_other_texts_of_a_config_stay():
    for text in ("data: {prompt: 'HSD(2) {source}'}", "skip: {a: [1, open(2), 'HSD(', HSD]}", "[", "HSD(2, 0, 8)", ""):
        assert with_calls_written_out(text, "mine.yaml", CLASSES) == text


def test_a_call_in_a_config_that_cannot_be_taken():
    with pytest.raises(
        UserError, match=r"mine\.yaml, line 2: HSD\(2, num_skipped=3\): HSD takes num_skipped, .* each once"
    ):
        with_calls_written_out("model: {}\nskip: HSD(2, num_skipped=3)", "mine.yaml", CLASSES)


def test_the_first_settings_of_a_search(monkeypatch):
    made = run(monkeypatch, "tune", "--model.name=m", "--data.folder=d", "--first=[HSD(2, 0, 8)]", cli=ParseOnly)
    assert made.config.tune.first[0].init_args.max_exit == 8


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--strategies=[HSD(2, 0, 8, 'linear', 5, 6, 7, 8)]", "HSD takes num_skipped, min_exit, max_exit"),
        ("--strategies=HSD(2, num_skipped=3)", "each once"),
        ("--strategies=HSD(open('x'))", r"HSD\(open\('x'\)\) has an argument that is neither a plain value nor a str"),
        ("--strategies=Verified(HSD(2, max_skip=open))", r"HSD\(2, max_skip=open\) has an argument that is neither"),
        ("--skip.draft=HSD(2, num_skipped=3)", "--skip.draft: HSD.* each once"),
        ("--strategies=mine.Own(3)", r"mine\.Own\(name=value\)"),
    ],
)
def test_calls_that_cannot_be_taken(option, says):
    with pytest.raises(UserError, match=says):
        with_strategies_written_out(["compare", option], CLASSES)


@pytest.mark.parametrize(
    "word",
    [
        *("--data.folder=HSD(2)", "--strategies=[]", "--strategies={}", "--skip=HSD", "--skip="),
        *(
            "--skip.classifier=a(1)",
            "--skip.draft=HSD",
            "--trainer.callbacks=null",
            "--trainer.callbacks=EarlyStopping",
        ),
    ],
)
def test_other_words_stay(word):
    assert with_strategies_written_out(["compare", word, "--x", "y"], CLASSES) == ["compare", word, "--x", "y"]


MISSPELT = {
    "--strategies=[HDS(2, 0, 8)]": "--strategies",
    "--strategies=[FullDepth, Verified(HDS(2, 0, 8), 4)]": "--strategies",
    "--strategies=[Verified(HDS)]": "--strategies",
    "--strategies=[{class_path: Verified, init_args: {draft: {class_path: HDS}}}]": "--strategies",
    "--strategies=[{class_path: Verified, init_args: {draft: HDS}}]": "--strategies",
    "--skip=Verified(HDS(2, 0, 8))": "--skip",
    "--skip=Verified(HDS)": "--skip",
    "--skip=Verified --skip.draft=HDS": "--skip",
    "--skip=Verified --skip.draft=HDS(2, 0, 8)": "--skip",
}


@pytest.mark.parametrize("given", MISSPELT)
def test_a_misspelt_class_is_named_with_the_nearest(given, monkeypatch, capsys):
    command = "compare" if given.startswith("--strategies") else "test"
    words = given.replace(" --", "\n--").split("\n")
    with pytest.raises(SystemExit):
        run(monkeypatch, command, "--model.name=m", "--data.folder=d", *words, cli=ParseOnly)
    said = capsys.readouterr().err
    assert said.startswith(f"error: {MISSPELT[given]}")
    assert said.splitlines()[0].endswith(": unknown class 'HDS'; did you mean HSD?")


def test_a_misspelt_draft_in_a_config_is_named_with_the_nearest(monkeypatch, tmp_path, capsys):
    texts = {
        "skip: Verified(HDS(2, 0, 8))": "--skip.draft: ",
        "skip: {class_path: Verified, init_args: {draft: {class_path: HDS}}}": f"{tmp_path / 'mine.yaml'}, line 1: ",
    }
    for text, where in texts.items():
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(SystemExit):
            run(monkeypatch, "test", "--data.folder=d", f"--config={tmp_path / 'mine.yaml'}", cli=ParseOnly)
        said = capsys.readouterr().err.splitlines()[0]
        assert said.startswith(f"error: {where}")
        assert said.endswith(": unknown class 'HDS'; did you mean HSD?")
