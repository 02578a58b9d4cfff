"""Configs that include others: their order, what is refused, and that they resolve as the same files one by one."""

import shlex

import pytest
import yaml

from hsdlab.cli.configs import config_files, with_included_configs, without_include
from hsdlab.errors import UserError
from tests.tiny_runs import ParseOnly, run


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write configs into the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(**texts):
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")

    return write


def names(files):
    return [str(file) for file in files]


def test_included_configs_come_first_each_after_its_own(write):
    write(
        model__a="include: [base.yaml]",
        model__base="model: {name: a}",
        data__b="data: {limit: 1}",
        run__own="include: [../model/a.yaml, ../data/b.yaml]\noutput: x",
    )
    assert names(config_files("run/own.yaml")) == ["model/base.yaml", "model/a.yaml", "data/b.yaml", "run/own.yaml"]
    assert names(config_files("data/b.yaml")) == ["data/b.yaml"]


def test_a_config_that_two_others_include_applies_twice(write):
    write(base="{}", a="include: [base.yaml]", b="include: [base.yaml]", own="include: [a.yaml, b.yaml]")
    assert names(config_files("own.yaml")) == ["base.yaml", "a.yaml", "base.yaml", "b.yaml", "own.yaml"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"own": "include: [a.yaml]", "a": "include: [./own.yaml]"}, "own.yaml includes a.yaml includes own.yaml: con"),
        ({"own": "include: [own.yaml]"}, "own.yaml includes own.yaml: configs include each other in a circle"),
        (
            {"own": "include: [a.yaml]", "a": "include: [b/c.yaml]"},
            "a.yaml includes b/c.yaml: there is no file b/c.yaml",
        ),
        ({"own": "include: a.yaml"}, "own.yaml: `include` is no list of paths"),
        ({"own": "include: [{a: b}]"}, "own.yaml: `include` is no list of paths"),
        ({"own": "include:"}, "own.yaml: `include` is no list of paths"),
    ],
)
def test_what_cannot_be_included_is_named_with_its_chain(texts, message, write, monkeypatch, capsys):
    write(**texts)
    with pytest.raises(UserError) as refused:
        config_files("own.yaml")
    assert message in str(refused.value)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "test", "--config=own.yaml", cli=ParseOnly)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_config_that_is_no_text_is_named(tmp_path):
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"own\.yaml: the config is no text in UTF-8"):
        config_files(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    "given", ["--config own.yaml", "--config=own.yaml", "-c own.yaml", "-cown.yaml", "--conf own.yaml"]
)
def test_a_config_is_replaced_where_it_stands(given, write):
    write(a="{}", own="include: [a.yaml]")
    args = ["test", "--output=x", *given.split(), "--model.name", "m"]
    expanded = ["test", "--output=x", "--config=a.yaml", "--config=own.yaml", "--model.name", "m"]
    assert with_included_configs(args) == expanded


def test_what_is_no_file_stays(write):
    write()
    args = ["test", "--config", "{output: x}", "--checkpoint_every=3", "--config"]
    assert with_included_configs(args) == ["test", "--config={output: x}", "--checkpoint_every=3", "--config"]


def test_own_settings_keep_their_values():
    text = "include:\n- a.yaml\nrate: 1e-3\ntext: '1e-3'\nshared: &one [yes, 007, Grüße]\nagain: *one\nappend+: [~]\n"
    own = without_include(text)
    assert yaml.safe_load(own) == {key: value for key, value in yaml.safe_load(text).items() if key != "include"}
    assert "rate: 1e-3\n" in own  # plain, which jsonargparse reads as a number
    assert without_include("a: 1  # as it is\n") == "a: 1  # as it is\n"
    assert without_include("{ no yaml") == "{ no yaml"


LAYERS = {
    "model": "model: {name: m, num_beams: 1}",
    "data": "data: {class_path: JSONLines, init_args: {folder: f, batch_size: 3}}",
    "listed": "strategies: [FullDepth, {class_path: SkipDecode, init_args: {min_exit: 3}}]",
    "own": "data: {init_args: {limit: 5}}\nstrategies+: [HSD]\nmodel: {num_beams: 2}",
}


def test_it_resolves_as_the_same_files_one_by_one(write, monkeypatch):
    write(**LAYERS, whole=f"include: [model.yaml, data.yaml, listed.yaml]\n{LAYERS['own']}")
    one_by_one = [f"--config={name}.yaml" for name in LAYERS]
    expected = run(monkeypatch, "compare", *one_by_one, "--output=x", cli=ParseOnly).config.compare
    resolved = run(monkeypatch, "compare", "--config=whole.yaml", "--output=x", cli=ParseOnly).config.compare
    del expected["config"], resolved["config"]
    assert resolved.as_dict() == expected.as_dict()
    assert resolved.data.init_args.batch_size == 3
    assert resolved.data.init_args.limit == 5
    assert resolved.model.num_beams == 2
    assert [each.class_path for each in resolved.strategies] == ["hsdlab.FullDepth", "hsdlab.SkipDecode", "hsdlab.HSD"]


def test_what_comes_later_on_the_command_line_wins(write, monkeypatch):
    write(**LAYERS, whole="include: [model.yaml, data.yaml]\nskip: {class_path: SkipDecode, init_args: {min_exit: 3}}")
    write(later="data: {class_path: Docstrings}\nskip: HSD")
    command = "test --config=whole.yaml --config=later.yaml --model.num_beams=7"
    resolved = run(monkeypatch, *shlex.split(command), cli=ParseOnly).config.test
    assert (resolved.data.class_path, resolved.data.init_args.batch_size) == ("hsdlab.data.Docstrings", 8)
    assert resolved.model.num_beams == 7
    assert resolved.skip.init_args.min_exit == 0  # HSD's own, not SkipDecode's


def test_settings_given_as_a_string_cannot_include(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "test", "--data=Docstrings", "--config={include: [a.yaml]}", cli=ParseOnly)
    assert "`test` has no option include" in capsys.readouterr().err


def test_the_printed_config_includes_nothing(write, monkeypatch, capsys):
    write(**LAYERS, whole="include: [model.yaml, data.yaml]\noutput: x")
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "test", "--config=whole.yaml", "--print_config", cli=ParseOnly)
    assert end.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert "include" not in printed
    assert (printed["model"]["name"], printed["data"]["init_args"]["folder"], printed["output"]) == ("m", "f", "x")
