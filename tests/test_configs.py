"""Every file under configs/ resolves to the committed summary, and fits a tiny random model in place of the hub's."""

import shlex

import pytest
import torch
import yaml

import hsdlab.modules.decode
from hsdlab.cli import EvaluateCLI
from hsdlab.cli.configs import config_files
from hsdlab.decoding.exit_classifier import ExitClassifier
from hsdlab.decoding.exit_router import ExitRouter
from hsdlab.runs.tunable import scheduled_classes
from hsdlab.strategies.vocabulary import VocabularyOption
from hsdlab.testing import tiny_model
from tests.law_cells import in_turns
from tests.resolved_configs import CONFIGS, ROOT, SUMMARY, command_of, summary, trains
from tests.tiny_checkpoints import tiny_tokenizer
from tests.tiny_runs import run

EVALUATE = [  # those of train.py are in tests/cli/test_train.py; data sets fit any model, and tokens need no strategy
    name
    for name, path in CONFIGS.items()
    if not trains(command_of(path)) and not name.startswith("data/") and "count-tokens" not in command_of(path)
]
COMMITTED = yaml.safe_load(SUMMARY.read_text(encoding="utf-8"))
ARCHITECTURES = {  # name in the configs -> family and layers
    "embedded:smollm2-135m": ("llama", 30),
    "openai-community/gpt2-large": ("gpt2", 36),
    "microsoft/phi-2": ("phi", 32),
    "facebook/opt-1.3b": ("opt", 24),
}
RENEW = "If that is meant: python -m tests.resolved_configs, and look at the difference before you commit it."


class InstantiateOnly(EvaluateCLI):
    """Makes all objects and checks that they fit; reads no data and writes nothing."""

    def before_instantiate_classes(self) -> None: ...

    def first_prompt(self) -> list[int]:
        return [7]

    def rehearse(self, prompt, strategies) -> None: ...

    def open_output(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    """The commands name configs from the project's folder."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def tiny_models(monkeypatch, tmp_path):
    """Give a tiny model of the same architecture and depth for each name, and any encoder."""

    def load_model(name, **options):
        family, num_layers = ARCHITECTURES.get(name, ARCHITECTURES["embedded:smollm2-135m"])  # fine-tuned ones
        return tiny_model(family, num_layers=num_layers), tiny_tokenizer()

    monkeypatch.setattr(hsdlab.modules.decode, "load_model", load_model)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(hsdlab.modules.text_metrics, "embedded_folder", lambda name: tmp_path)


def test_the_summary_holds_every_config():
    assert list(COMMITTED) == sorted(CONFIGS), RENEW
    folders = {name.partition("/")[0] for name in CONFIGS}
    assert folders == {"model", "data", "strategy", "training", "experiment", "results"}


@pytest.mark.parametrize("name", CONFIGS)
def test_it_resolves_as_committed(name):
    command = command_of(CONFIGS[name])
    assert name.removesuffix(".yaml") in command.replace("=", " ").split()
    resolved = {"command": command, **summary(command)}
    assert resolved == COMMITTED.get(name), f"configs/{name} does not resolve as committed. {RENEW}"


@pytest.mark.parametrize("name", in_turns(EVALUATE, 2))
def test_its_strategies_fit_the_model(name, tiny_models, monkeypatch):
    untrained = classmethod(lambda cls, path, hidden_size, num_layers: cls(hidden_size, range(num_layers - 1)))
    monkeypatch.setattr(ExitRouter, "load", untrained)  # the file is a training's
    monkeypatch.setattr(ExitClassifier, "load", classmethod(lambda cls, path, hidden_size: cls(hidden_size)))
    monkeypatch.setattr(VocabularyOption, "ids", lambda self, parts: None if self.value is None else torch.arange(8))
    monkeypatch.setattr(VocabularyOption, "check_tokenizer", lambda self, tokenizer: None)  # the file is not in git
    _, *arguments = shlex.split(command_of(CONFIGS[name]))
    cli = run(monkeypatch, *arguments, cli=InstantiateOnly)  # tries each strategy on the model
    made = cli.config_init[cli.subcommand]
    if cli.subcommand == "tune":
        assert [each.__name__ for each in scheduled_classes(made.classes)] == COMMITTED[name].get(
            "classes",
            ["HSD", "SkipDecode"],  # the default
        )
        strategies, resolved = made.first or [], COMMITTED[name].get("first", [])
    elif "strategies" in made:
        strategies, resolved = made.strategies, COMMITTED[name]["strategies"]
    else:
        strategies, resolved = [made.skip], [COMMITTED[name].get("skip", "FullDepth")]
    names = [each if isinstance(each, str) else next(iter(each)) for each in resolved]
    assert [type(strategy).__name__ for strategy in strategies] == names


@pytest.mark.parametrize("start", ["hsdlab test", "hsdlab fit", "hsdlab fit-exit-classifier"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith(("model/", "data/"))])
def test_models_and_data_serve_every_command(name, start):
    section, _, _ = name.partition("/")
    layers = {"model": "model/smollm2_135m.yaml", "data": "data/docstrings.yaml"} | {section: name}
    resolved = summary(start + "".join(f" --config configs/{layer}" for layer in layers.values()))
    if section == "data":
        assert resolved["data"] == COMMITTED[name]["data"]
        assert resolved["model"].get("max_new_tokens", 50) == COMMITTED[name]["model"].get("max_new_tokens", 50)
    else:
        assert resolved["model"] == COMMITTED[name]["model"] | {"max_new_tokens": 30}  # of docstrings.yaml


def test_experiments_and_results_repeat_no_layer():
    """What an included layer says is not said once more."""
    for name in CONFIGS:
        *included, own = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in config_files(CONFIGS[name]))
        said = {}
        for layer in included:
            said |= _flat(layer)
        repeated = [key for key, value in _flat(own).items() if key != "include" and said.get(key, ...) == value]
        assert repeated == [], f"configs/{name} repeats {repeated} of what it includes"


def test_the_tuner_begins_with_what_training_was_for():
    training = yaml.safe_load(CONFIGS["training/skip_aware_to_a_third.yaml"].read_text(encoding="utf-8"))["model"]
    tuner = yaml.safe_load(CONFIGS["strategy/tune_skip_aware.yaml"].read_text(encoding="utf-8"))
    assert [{"class_path": "FullDepth"}, *tuner["first"]] == training["skip_strategies"]


def _flat(settings, prefix=""):
    """A config's settings by their dotted names."""
    if not isinstance(settings, dict):
        return {prefix.removesuffix("."): settings}
    return {key: each for name, value in settings.items() for key, each in _flat(value, f"{prefix}{name}.").items()}
