"""Every file under configs/ parses and instantiates, with a tiny random model in place of the hub's."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import hsdlab.modules.decode
from hsdlab.cli import EvaluateCLI
from hsdlab.runs.tune import scheduled_classes
from hsdlab.testing import tiny_model
from tests.tiny_checkpoints import tiny_tokenizer
from tests.tiny_runs import ParseOnly, run

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(  # those of train.py are in test_train_cli.py
    path
    for path in (ROOT / "configs").rglob("*.yaml")
    if not path.stem.startswith(("finetune", "exit_classifier")) and path.parent.name != "training"
)
ARCHITECTURES = {  # name in the configs -> family and layers
    "embedded:smollm2-135m": ("llama", 30),
    "openai-community/gpt2-large": ("gpt2", 36),
    "microsoft/phi-2": ("phi", 32),
    "facebook/opt-1.3b": ("opt", 24),
}
DEFAULTS = {"model": "--model.name=embedded:smollm2-135m", "data": "--data=Docstrings"}


class InstantiateOnly(EvaluateCLI):
    """Makes all objects and checks that they fit; reads no data and writes nothing."""

    def before_instantiate_classes(self) -> None: ...

    def open_output(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch, tmp_path):
    """Give a tiny model of the same architecture and depth for each name, and any encoder."""

    def load_model(name, **options):
        family, num_layers = ARCHITECTURES.get(name, ARCHITECTURES["embedded:smollm2-135m"])  # fine-tuned ones
        return tiny_model(family, num_layers=num_layers), tiny_tokenizer()

    monkeypatch.setattr(hsdlab.modules.decode, "load_model", load_model)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(hsdlab.modules.decode, "embedded_folder", lambda name: tmp_path)


def command_of(path):
    """The arguments of the command in a config's header."""
    (command,) = re.findall(r"^# python evaluate\.py (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return command


def test_there_are_configs_of_every_layer():
    assert {path.parent.name for path in CONFIGS} == {"model", "data", "strategy", "experiment", "results"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_instantiates(path, monkeypatch):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    missing = [flag for layer, flag in DEFAULTS.items() if layer not in content or layer == "model"]
    if "name" in content.get("model", {}):
        missing.remove(DEFAULTS["model"])
    subcommand = shlex.split(command_of(path))[0]
    cli = run(monkeypatch, subcommand, f"--config={path}", *missing, cli=InstantiateOnly)

    made = cli.config_init[subcommand]
    if subcommand == "tune":  # names of classes
        assert made.strategies == content["strategies"]
        assert scheduled_classes(made.strategies)
    else:
        for strategy, configured in zip(
            made.get("strategies") or [made.skip], content.get("strategies") or [content.get("skip", {})], strict=True
        ):
            assert type(strategy).__name__ == configured.get("class_path", "FullDepth")
            assert _holds(strategy.config()["init_args"], configured.get("init_args", {}))
    for name, value in content.get("model", {}).items():
        assert cli.config[subcommand].model[name] == value
    for name, value in content.get("data", {}).get("init_args", {}).items():
        assert cli.config[subcommand].data.init_args[name] == value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_command_in_its_header_uses_it_and_parses(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = command_of(path)
    assert str(path.relative_to(ROOT)) in command
    run(monkeypatch, *shlex.split(command), cli=ParseOnly)


def _holds(actual, configured):
    """Whether all that was configured is so; a strategy within a strategy may be named shortly."""
    if not isinstance(configured, dict):
        return actual == configured
    if "class_path" in configured:
        same = actual["class_path"].rpartition(".")[2] == configured["class_path"].rpartition(".")[2]
        return same and _holds(actual["init_args"], configured.get("init_args", {}))
    return all(_holds(actual[name], value) for name, value in configured.items())
