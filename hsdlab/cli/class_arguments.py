"""The arguments of classes: which there are, and the class in a list of strategies that an argument was given to.

jsonargparse's messages name an argument of a class in a list by its last name alone.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hsdlab.cli.strategy_words import LISTS, ONE, with_calls_written_out


@dataclass(frozen=True)
class GivenClass:
    """A class with the arguments that were given to it.

    Attributes:
        where: The option that names it, with the config that it stands in: "--strategies", "mine.yaml: strategies".
        name: Its short name.
        given: The names of the arguments that were given.
        takes: The names of the arguments that it takes.
    """

    where: str
    name: str
    given: frozenset[str]
    takes: tuple[str, ...]


def arguments(cls: type) -> Iterator[str]:
    """List the parameters of a class, those of its bases included where it passes ``**kwargs`` on to them.

    Args:
        cls: The class.

    Yields:
        Their names, the class's own first.
    """
    for base in cls.__mro__:
        if "__init__" in vars(base) and base is not object:
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
            yield from (each.name for each in parameters if each.kind not in variable)
            if all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in parameters):
                return


def given_classes(words: Sequence[str], files: Iterable[Path], classes: Mapping[str, type]) -> Iterator[GivenClass]:
    """Find the strategies that a command line and the lists in its configs name with arguments.

    Args:
        words: The command line, with class paths in place of calls (`with_strategies_written_out`).
        files: Its configs.
        classes: Strategies by their short names.

    Yields:
        Each of them, those of the command line first.
    """
    for word in words:
        option, _, value = word.partition("=")
        if option.removesuffix("+") in (*LISTS, *ONE):
            yield from _found(option, _loaded(value), classes)
    for file in files:
        config = _loaded(with_calls_written_out(file.read_text(encoding="utf-8"), str(file), classes))
        for option in LISTS:
            node = config
            for part in option.lstrip("-").split("."):
                node = node.get(part, node.get(f"{part}+")) if isinstance(node, dict) else None
            yield from _found(f"{file}: {option.lstrip('-')}", node, classes)


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _found(where: str, node: Any, classes: Mapping[str, type]) -> Iterator[GivenClass]:
    """Yield the classes in a value, those in the arguments of others too."""
    if isinstance(node, list):
        for each in node:
            yield from _found(where, each, classes)
    elif isinstance(node, dict):
        name, given = str(node.get("class_path")).rpartition(".")[2], node.get("init_args")
        if name in classes and isinstance(given, dict):
            yield GivenClass(where, name, frozenset(map(str, given)), tuple(dict.fromkeys(arguments(classes[name]))))
        for each in given.values() if isinstance(given, dict) else ():
            yield from _found(where, each, classes)
