"""What every config resolves to, from the command in its header, without the defaults.

    python -m tests.resolved_configs      write tests/resolved_configs.yaml

A config is parsed, and no model is loaded. The summary shows which runs a change of a config reaches.
"""

import dataclasses
import functools
import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from lightning.pytorch.cli import LightningCLI

from hsdlab.cli import EvaluateCLI
from hsdlab.cli.names import TRAIN
from hsdlab.cli.subcommands import dropping_arguments_of_other_classes
from hsdlab.cli.train import TrainCLI
from hsdlab.modules import LoRA
from hsdlab.program import of_train

ROOT = Path(__file__).parents[1]
CONFIGS = {str(path.relative_to(ROOT / "configs")): path for path in sorted((ROOT / "configs").rglob("*.yaml"))}
SUMMARY = Path(__file__).with_suffix(".yaml")
HEADER = """\
# What the command in each config's header resolves to, without the defaults; tests/test_configs.py compares.
# Written by: python -m tests.resolved_configs
"""


def command_of(path: Path) -> str:
    """Return the command in a config's header."""
    (command,) = re.findall(r"^# (hsdlab .*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return str(command)


def trains(command: str) -> bool:
    """Tell whether a command of `hsdlab` is one of training."""
    return shlex.split(command)[1] in map(of_train, TRAIN)


def summary(command: str) -> dict[str, Any]:
    """Return the settings of a command that are not the defaults.

    Args:
        command: Such as "hsdlab test --config experiment/quickstart".

    Returns:
        The settings; a class's arguments without those that the class has by itself.
    """
    _, name, *arguments = shlex.split(command)
    cli = _cli("train.py" if trains(command) else "evaluate.py")
    named = {of_train(each): each for each in TRAIN} if trains(command) else {}
    with dropping_arguments_of_other_classes():
        config = cli.parser.parse_args([named.get(name, name.replace("-", "_")), *arguments])
    parser = cli._parser(config.subcommand)
    settings = yaml.safe_load(parser.dump(config[config.subcommand], skip_default=True, format="yaml"))
    return _without_defaults({name: value for name, value in settings.items() if name != "config"})


def write() -> None:
    """Write the summary of all configs."""
    settings = {name: {"command": command_of(path), **summary(command_of(path))} for name, path in CONFIGS.items()}
    text = yaml.safe_dump(settings, default_flow_style=None, width=120, allow_unicode=True)
    SUMMARY.write_text(HEADER + text, encoding="utf-8")


@functools.cache
def _cli(script: str) -> Any:
    """Make a command line once; its parser serves for all configs."""
    base: type[Any] = {"evaluate.py": EvaluateCLI, "train.py": TrainCLI}[script]
    subcommand = {"evaluate.py": "test", "train.py": "validate"}[script]
    steps = ("before_instantiate_classes", "instantiate_classes", "after_instantiate_classes", "_run_subcommand")
    of_all = {"_add_subcommands": LightningCLI._add_subcommands}  # not of the named subcommand alone
    parse_only = type("ParseOnly", (base,), {**dict.fromkeys(steps, lambda *_: None), **of_all})
    with patch.object(sys, "argv", [script]):
        return parse_only([subcommand, "--model.name=embedded:smollm2-135m", "--data=Docstrings"])


def _without_defaults(value: Any) -> Any:
    """Drop from each class what its own arguments are by default, at any depth."""
    if isinstance(value, list):
        return [_without_defaults(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "class_path" in value:
        defaults = _defaults(value["class_path"])
        arguments = value.get("init_args", {}).items()
        given = {name: _without_defaults(each) for name, each in arguments if each != defaults.get(name, ...)}
        name = value["class_path"].rpartition(".")[2]
        return {name: given} if given else name
    named = {name: _without_defaults(each) for name, each in value.items()}
    if "lora_alpha" in named:  # a dataclass of its own, which a config names without its class
        defaults = dataclasses.asdict(LoRA())
        return {name: each for name, each in named.items() if name in ("r", "lora_alpha") or each != defaults[name]}
    return named


def _defaults(class_path: str) -> dict[str, Any]:
    """Return the arguments of a class that have a default, those that it passes on to its bases among them."""
    module, _, name = class_path.rpartition(".")
    found = {}
    for each in reversed(getattr(importlib.import_module(module), name).__mro__):
        parameters = inspect.signature(each.__init__).parameters.values() if "__init__" in vars(each) else ()
        found.update({one.name: one.default for one in parameters if one.default is not one.empty})
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


if __name__ == "__main__":
    write()
    print(f"Wrote {SUMMARY.relative_to(ROOT)}: {len(CONFIGS)} configs.")
