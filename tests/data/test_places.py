"""data/<name> is looked for in $HSDLAB_DATA, then in the current folder."""

from pathlib import Path

import pytest

from hsdlab.data import DataFolder, JSONLines, Restaurants
from hsdlab.data.places import resolved_folder
from hsdlab.errors import UserError

LINE = '{"id": "1", "source": "s", "references": ["r"]}\n'


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    for folder in ("data/here", "elsewhere/there", "elsewhere/both", "data/both"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "test.jsonl").write_text(LINE.replace('"s"', f'"{folder}"'), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HSDLAB_DATA", "elsewhere")


@pytest.mark.parametrize("kind", [JSONLines, DataFolder])
def test_the_variable_first_then_the_current_folder(kind, monkeypatch):
    sources = {name: kind(f"data/{name}").examples("test")[0].source for name in ("here", "there", "both")}
    assert sources == {"here": "data/here", "there": "elsewhere/there", "both": "elsewhere/both"}
    monkeypatch.delenv("HSDLAB_DATA")
    assert kind("data/both").examples("test")[0].source == "data/both"


def test_other_paths_stay(monkeypatch, tmp_path):
    assert resolved_folder("my_data/x") == Path("my_data/x")
    assert resolved_folder(str(tmp_path / "data/x")) == tmp_path / "data/x"
    assert resolved_folder("../data/x") == Path("../data/x")


@pytest.mark.parametrize("kind", [JSONLines, DataFolder])
def test_a_missing_set_says_how_to_get_it(kind):
    with pytest.raises(FileNotFoundError) as missing:
        kind("data/e2e_nlg").examples("test")
    assert "`hsdlab data prepare e2e_nlg` writes it" in str(missing.value)
    assert "set $HSDLAB_DATA to the folder that holds e2e_nlg" in str(missing.value)
    with pytest.raises(FileNotFoundError) as missing:
        kind("elsewhere/none").examples("test")
    assert "prepare" not in str(missing.value)


def test_the_restaurants_are_48_with_two_descriptions_each_of_all_that_is_given():
    examples = Restaurants().examples("test")
    assert len(examples) == len({example.source for example in examples}) == 48
    for example in examples:
        assert len(set(example.references)) == 2
        facts = dict(fact.rstrip("]").split("[") for fact in example.source.split(", "))
        for reference in example.references:
            for name in ("name", "near", "food"):
                assert facts.get(name, "").lower() in reference.lower(), example
    with pytest.raises(UserError, match="has a test split only, got train"):
        Restaurants().examples("train")
