"""Options that have a new name: the old one still works, on the command line and in configs, with a warning."""

import re
from collections.abc import Iterator, Mapping, Sequence

import yaml
from lightning.pytorch.utilities import rank_zero_warn

from hsdlab.cli.configs import top_level
from hsdlab.errors import UserError

_TRAINING = {
    "model.decay": "model.learning_rate_schedule",
    "model.lora.rank": "model.lora.r",
    "model.lora.alpha": "model.lora.lora_alpha",
    "model.lora.dropout": "model.lora.lora_dropout",
    "model.lora.targets": "model.lora.target_modules",
}
RENAMED: dict[str, dict[str, str]] = {
    "fit": _TRAINING,
    "validate": _TRAINING,
    "tune": {"strategies": "classes"},
}
"""Subcommand -> old name -> new name, without hyphens. Of dotted names ("model.old") only the last part may differ."""


def with_new_options(args: Sequence[str], renamed: Mapping[str, Mapping[str, str]] = RENAMED) -> list[str]:
    """Give the options of a command line their new names.

    Args:
        args: The command line; the options of a subcommand follow its name.
        renamed: See `RENAMED`.

    Returns:
        The command line with new names; values stay as they are.
    """
    start = next((i for i, arg in enumerate(args) if arg in renamed), len(args))
    names = renamed[args[start]] if start < len(args) else {}
    return [*args[: start + 1], *(_new_option(arg, args[start], names) for arg in args[start + 1 :])]


def with_new_keys(text: str, subcommand: str | None, renamed: Mapping[str, Mapping[str, str]] = RENAMED) -> str:
    """Give the keys of a config their new names.

    Args:
        text: The config.
        subcommand: Whose settings it holds; None where they stand below the subcommand's name.
        renamed: See `RENAMED`.

    Returns:
        The config with new names; the values are untouched, as they were written.

    Raises:
        UserError: If the config sets an option under both names.
    """
    top = top_level(text)
    if top is None:
        return text
    changed = False
    for name, names in renamed.items():
        if subcommand in (None, name):
            for settings in _below(top, [] if subcommand else [name]):
                for old, new in names.items():
                    changed |= _rename(settings, old, new, name)
    return yaml.serialize(top, Dumper=yaml.SafeDumper, allow_unicode=True) if changed else text


def _new_option(arg: str, subcommand: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if re.match(rf"--{re.escape(old)}(?=$|[=+.])", arg):
            _warn(subcommand, f"--{old}", f"--{new}")
            return f"--{new}{arg[len(old) + 2 :]}"
    return arg


def _rename(settings: yaml.MappingNode, old: str, new: str, subcommand: str) -> bool:
    """Rename the key of an option in a subcommand's settings; say whether it is there."""
    *parents, key = old.split(".")
    new_key = new.rpartition(".")[2]
    found = False
    for mapping in _below(settings, parents):
        keys = {node.value.removesuffix("+"): node for node, _ in mapping.value}
        if key not in keys:
            continue
        if new_key in keys:
            raise UserError(f"The config sets {old} and {new}, which are one option of {subcommand}: keep {new}.")
        keys[key].value = keys[key].value.replace(key, new_key, 1)  # `key+`, which appends, stays so
        _warn(subcommand, old, new)
        found = True
    return found


def _below(node: yaml.Node, names: Sequence[str]) -> Iterator[yaml.MappingNode]:
    """Find the mapping below a path of names."""
    if not isinstance(node, yaml.MappingNode):
        return
    if not names:
        yield node
        return
    for key, value in node.value:
        if key.value == names[0]:
            yield from _below(value, names[1:])


def _warn(subcommand: str, old: str, new: str) -> None:
    rank_zero_warn(f"{subcommand}: {old} is now called {new}; the old name will go away.", category=FutureWarning)
