"""Configs by name: found without a file, listed, shown, copied; unknown ones met with the nearest names."""

import pytest
import yaml

from hsdlab.cli import packaged_configs
from hsdlab.cli.configs import config_files, with_included_configs
from hsdlab.cli.packaged_configs import configs_folder, copied, listed, looks_like_a_name, packaged_config
from hsdlab.errors import RunError, UserError
from tests.resolved_configs import CONFIGS
from tests.tiny_runs import ParseOnly, run

QUICKSTART = ["model/smollm2_135m.yaml", "data/docstrings.yaml", "experiment/quickstart.yaml"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, as a user has it who installed a wheel."""
    monkeypatch.chdir(tmp_path)


def below(files):
    return [file.relative_to(configs_folder()).as_posix() for file in files]


def test_every_config_has_a_name():
    assert [f"{name}.yaml" for name in packaged_configs.packaged_names()] == sorted(CONFIGS)


def test_in_a_wheel_the_configs_are_inside_the_package(tmp_path, monkeypatch):
    package = tmp_path / "hsdlab"
    package.mkdir()
    monkeypatch.setattr(packaged_configs.hsdlab, "__file__", str(package / "__init__.py"))
    assert configs_folder() == tmp_path / "configs"
    (package / "configs").mkdir()
    assert configs_folder() == package / "configs"


@pytest.mark.parametrize(
    "name",
    [
        "experiment/quickstart",
        "experiment/quickstart.yaml",
        "configs/experiment/quickstart.yaml",
        "./experiment/quickstart",
    ],
)
def test_a_name_without_a_file_is_a_packaged_config(name):
    expanded = with_included_configs(["test", "--config", name, "--output=x"])
    assert expanded == ["test", *(f"--config={configs_folder() / each}" for each in QUICKSTART), "--output=x"]


def test_a_file_of_that_name_comes_first(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/quickstart.yaml").write_text("output: mine", encoding="utf-8")
    assert with_included_configs(["--config=experiment/quickstart.yaml"]) == ["--config=experiment/quickstart.yaml"]
    (tmp_path / "model").mkdir()  # a folder is no config
    assert packaged_config("model/gpt2") == configs_folder() / "model/gpt2.yaml"


def test_an_include_finds_packaged_configs_after_files_beside_it(tmp_path):
    (tmp_path / "own.yaml").write_text("include: [experiment/quickstart, mine.yaml, ../model/gpt2.yaml]\n")
    (tmp_path / "mine.yaml").write_text("output: mine\n")
    *packaged, mine, gpt2, own = config_files("own.yaml")
    assert below([*packaged, gpt2]) == [*QUICKSTART, "model/gpt2.yaml"]
    assert [mine.name, own.name] == ["mine.yaml", "own.yaml"]


def test_a_run_resolves_with_names_alone(monkeypatch):
    config = run(monkeypatch, "compare", "--config=experiment/quickstart_compare", "--output=out", cli=ParseOnly).config
    assert config.compare.model.name == "embedded:smollm2-135m"
    assert len(config.compare.strategies) == 7
    assert config.compare.output == "out"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("experiment/quickstrt", "experiment/quickstart, experiment/quickstart_compare"),
        ("qickstart.yaml", "experiment/quickstart, experiment/quickstart_compare"),
        ("strategy/gpt2", "model/gpt2"),
        ("hsd", "strategy/hsd"),
    ],
)
def test_an_unknown_name_lists_the_nearest(name, nearest, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "test", f"--config={name}", cli=ParseOnly)
    assert end.value.code == 2
    expected = (
        f"error: --config: there is no file {name} and no packaged config of that name. The nearest are {nearest}"
    )
    assert capsys.readouterr().err.startswith(expected)


def test_an_unknown_include_names_the_chain(tmp_path):
    (tmp_path / "own.yaml").write_text("include: [model/gpt3]\n")
    chain = (
        r"^own\.yaml includes model/gpt3: there is no file model/gpt3 and no packaged config of that name.* model/gpt2"
    )
    with pytest.raises(UserError, match=chain):
        config_files("own.yaml")


@pytest.mark.parametrize("value", ["{output: x}", "output: x", "null", "[a]", "a: b\nc: d"])
def test_settings_are_no_name(value):
    assert not looks_like_a_name(value)
    assert with_included_configs([f"--config={value}"]) == [f"--config={value}"]


def test_the_list_says_what_each_is_for():
    lines = listed().splitlines()
    assert [line.split()[0] for line in lines[: len(CONFIGS)]] == packaged_configs.packaged_names()
    assert all(len(line.split()) > 1 for line in lines[: len(CONFIGS)])
    some = listed(["e2e", "data/"]).splitlines()
    assert [line.split()[0] for line in some[:2]] == ["data/e2e_nlg", "data/e2e_nlg_jsonl"]
    with pytest.raises(UserError, match="no packaged config has e3e in its name"):
        listed(["e3e"])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_copy_is_the_same_run(name, tmp_path):
    copy = copied(name, tmp_path / "mine")
    assert copy == tmp_path / "mine" / name.rpartition("/")[2]
    *included, own = config_files(copy)
    *expected, original = config_files(CONFIGS[name])
    assert below(included) == below(expected)
    assert "../" not in str(yaml.safe_load(copy.read_text(encoding="utf-8")).get("include"))
    settings, originals = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in (own, original))
    settings.pop("include", None)
    originals.pop("include", None)
    assert settings == originals


def test_a_copy_overwrites_nothing(tmp_path):
    copied("model/gpt2", tmp_path / "a.yaml")
    with pytest.raises(RunError, match=r"a\.yaml exists"):
        copied("model/phi2", tmp_path / "a.yaml")
    assert "gpt2" in (tmp_path / "a.yaml").read_text()


def test_show_prints_the_file(capsys):
    packaged_configs.main(["show", "strategy/hsd"])
    assert capsys.readouterr().out == CONFIGS["strategy/hsd.yaml"].read_text(encoding="utf-8")
