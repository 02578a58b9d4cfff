"""Adapters of installed distributions: found by entry points, and no code of the distribution is imported."""

import sys
import tomllib
from pathlib import Path

import pytest
import torch

from hsdlab.cli import model_list
from hsdlab.errors import UserError
from hsdlab.models import installed_adapters as module
from hsdlab.models import load_model
from hsdlab.models.embedded import adapter_folder
from hsdlab.models.installed_adapters import COMPANION, GROUP, HOW_TO_GET_THEM, installed_adapters
from tests.tiny_checkpoints import save, save_adapter, tiny_llama

PROJECT = Path(__file__).parents[2] / "adapters"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Give a function that installs a distribution of adapters, whose code must not run; there are no others."""
    names = []
    real = module.entry_points
    monkeypatch.setattr(
        module, "entry_points", lambda **which: [each for each in real(**which) if each.dist.name in names]
    )

    def install(name, entry_points, package="fake_adapters"):
        site = tmp_path / name
        metadata = site / f"{name.replace('-', '_')}-1.5.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        lines = [f"{adapter} = {folder}" for adapter, folder in entry_points.items()]
        (metadata / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))
        (site / package).mkdir()
        (site / package / "__init__.py").write_text("raise AssertionError('imported')")
        monkeypatch.syspath_prepend(site)
        names.append(name)
        return site / package

    return install


def test_an_adapter_is_loaded_by_the_name_of_its_entry_point(install, tmp_path):
    folder = install("fake-adapters", {"tiny-skip": "fake_adapters.deep.tiny"}) / "deep" / "tiny"
    base = save(tiny_llama(), tmp_path / "base")
    save_adapter(base, tiny_llama(), folder, ["q_proj"])
    assert adapter_folder("embedded:tiny-skip") == folder
    model, _ = load_model("embedded:tiny-skip", device="cpu")
    expected, _ = load_model(folder, device="cpu")
    weights = [each.model.layers[0].self_attn.q_proj.weight for each in (model, expected, tiny_llama())]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert "fake_adapters" not in sys.modules


def test_models_lists_them(install, capsys):
    folder = install(COMPANION, {"b": "fake_adapters.b", "a": "fake_adapters.lost"}) / "b"
    folder.mkdir()
    assert [(each.name, each.version) for each in installed_adapters().values()] == [("a", "1.5"), ("b", "1.5")]
    model_list.main([])
    said = capsys.readouterr().out
    assert f"embedded:b  {COMPANION} 1.5, {folder}\n" in said
    assert f"embedded:a  {COMPANION} 1.5, its folder is missing" in said
    assert HOW_TO_GET_THEM not in said
    with pytest.raises(UserError, match=r"distribution hsdlab-adapters 1\.5 lacks the folder of its adapter 'a'"):
        load_model("embedded:a")


def test_without_the_companion_one_sentence_says_how_to_get_it(install, capsys):
    with pytest.raises(UserError) as refused:
        load_model("embedded:smollm2-135m-e2e-skip-aware")
    assert str(refused.value) == (
        "no embedded model or installed adapter is called 'embedded:smollm2-135m-e2e-skip-aware'; there are "
        f"embedded:smollm2-135m, embedded:all-minilm-l6-v2. {HOW_TO_GET_THEM}"
    )
    model_list.main([])
    said = capsys.readouterr().out
    assert "No adapter is installed.\n" in said
    assert HOW_TO_GET_THEM in said


def test_with_the_companion_it_is_not_advertised(install):
    install(COMPANION, {"a": "fake_adapters.a"})
    with pytest.raises(
        UserError,
        match=r"there are .*, embedded:a. hsdlab-adapters may have it since: run .pip install ./adapters. again",
    ):
        load_model("embedded:smollm2-135m-e2e")


def test_two_distributions_of_one_name_are_refused(install):
    install("fake-one", {"a": "one.a"}, "one")
    install("fake-two", {"a": "two.a"}, "two")
    with pytest.raises(
        UserError, match=r"fake-\w+ and fake-\w+ both contain an adapter or model called 'a'; uninstall one"
    ):
        adapter_folder("embedded:a")


@pytest.mark.parametrize("value", ["not_installed.a", "json.a"])
def test_a_path_that_leads_nowhere_is_no_folder(install, value):
    install("fake-adapters", {"a": value})
    assert installed_adapters()["a"].folder is None


def test_no_adapter_takes_the_name_of_a_model(install):
    install("fake-adapters", {"smollm2-135m": "fake_adapters.a"})
    assert adapter_folder("embedded:smollm2-135m") is None
    assert adapter_folder("some/model") is None
    assert adapter_folder("embedded:unknown") is None


def test_the_companion_names_a_folder_for_each_adapter_and_model():
    with (PROJECT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert project["name"] == COMPANION
    adapters = {path.parent.name for path in PROJECT.glob("*/*/adapter_model.safetensors")}
    models = {path.parent.name for path in PROJECT.glob("*/*/model.safetensors")}
    assert project["entry-points"][GROUP] == {
        **{f"smollm2-135m-{each.replace('_', '-')}": f"hsdlab_adapters.{each}" for each in adapters},
        **{each.replace("_", "-"): f"hsdlab_adapters.{each}" for each in models},
    }


def test_a_whole_model_is_loaded_by_the_name_of_its_entry_point(install):
    folder = install("fake-adapters", {"tiny-whole": "fake_adapters.whole"}) / "whole"
    save(tiny_llama(), folder)
    model, _ = load_model("embedded:tiny-whole", device="cpu")
    assert torch.equal(model.lm_head.weight, tiny_llama().lm_head.weight)
    assert model.name_or_path == "embedded:tiny-whole"  # what an adapter trained on it notes as its base
