"""Strategies as the tables write them: ``--strategies='[HSD(2, 0, 8), CALM(0.9)]'``, in a config ``skip: CALM(0.9)``.

They become class paths with arguments, the form that jsonargparse has.
"""

import ast
import difflib
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hsdlab.errors import UserError

LISTS = ("--strategies", "--first", "--model.skip_strategies")
ONE = ("--skip",)
"""The options that take a list of strategies, and one strategy."""
OF_ONE = "--skip."
"""How the options begin that are arguments of that strategy."""
CALLBACKS = "--trainer.callbacks"
"""A list that may hold strategies among others."""
KEYS = ("skip", "strategies", "first", "skip_strategies", "callbacks")
"""The keys of these options in a config."""


def with_strategies_written_out(args: Sequence[str], classes: Mapping[str, type]) -> list[str]:
    """Replace strategies that are written as calls by class paths with arguments.

    Args:
        args: The command line.
        classes: Strategies by their short names, whose arguments may be given by position.

    Returns:
        The command line; values that are written in another way, such as YAML, stay.

    Raises:
        UserError: A call with arguments that the class does not take, or that are no plain values.

    Example:
        >>> from hsdlab import HSD
        >>> with_strategies_written_out(["compare", "--strategies=HSD(2, max_exit=8)"], {"HSD": HSD})[1]
        '--strategies=[{"class_path": "HSD", "init_args": {"num_skipped": 2, "max_exit": 8}}]'
    """
    written: list[str] = []
    for word in args:
        option, equals, value = word.partition("=")
        if not equals and written and _takes_strategies(written[-1]):
            option, value = written.pop(), word
        if _takes_strategies(option) and (found := _classes(option, value, classes)) is not None:
            word = f"{option}={json.dumps(found)}"
        elif option != word and not equals:
            written.append(option)
        written.append(word)
    return written


def with_calls_written_out(text: str, where: str, classes: Mapping[str, type]) -> str:
    """Replace strategies that are written as calls in a config, such as ``draft: HSD(2, 0, 8)``.

    Args:
        text: The config.
        where: The file, for messages.
        classes: Strategies by their short names, whose arguments may be given by position.

    Returns:
        The config; without such calls as it was written.

    Raises:
        UserError: See :func:`with_strategies_written_out`.
    """
    try:
        top = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return text  # which the parser reports
    if top is None or not _replaced(top, where, classes, inside=False):
        return text
    return yaml.serialize(top, Dumper=yaml.SafeDumper, allow_unicode=True)


def _replaced(node: yaml.Node, where: str, classes: Mapping[str, type], inside: bool) -> bool:
    """Replace calls below a node, in the values of ``KEYS``; say whether there was one."""
    found = False
    parts = node.value if isinstance(node, yaml.MappingNode | yaml.SequenceNode) else []
    for place, part in enumerate(parts):
        key, value = part if isinstance(node, yaml.MappingNode) else (None, part)
        name = "" if key is None else str(key.value).removesuffix("+")
        within = inside or name in KEYS
        if within and isinstance(value, yaml.ScalarNode):
            made = _call(value.value, f"{where}, line {value.start_mark.line + 1}", classes)
            if made is not None:
                new = yaml.compose(json.dumps(made), Loader=yaml.SafeLoader)
                parts[place] = new if key is None else (key, new)
                found = True
        else:
            found |= _replaced(value, where, classes, within)
    return found


def _takes_strategies(option: str) -> bool:
    return option.removesuffix("+") in (*LISTS, *ONE, CALLBACKS) or option.startswith(OF_ONE)


def _classes(option: str, value: str, classes: Mapping[str, type]) -> list[Any] | dict[str, Any] | None:
    """Return what an option's value stands for; None where it is written in another way, such as YAML."""
    tree = _parsed(value)
    if tree is None:
        return None
    if option in ONE:
        return _written_out(option, tree, classes) if isinstance(tree, ast.Call) and _name(tree.func) else None
    if option.startswith(OF_ONE):
        return _call(value, option, classes)
    nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    if not nodes or any(_name(_of_call(node)) is None for node in nodes):
        return None
    if option.removesuffix("+") == CALLBACKS and not any(_means_strategy(node, classes) for node in nodes):
        return None
    return [_written_out(option, node, classes) for node in nodes]


def _call(text: str, where: str, classes: Mapping[str, type]) -> dict[str, Any] | None:
    """Return what a text stands for that may be a call of a strategy, and may be any other text."""
    tree = _parsed(text)
    if not isinstance(tree, ast.Call) or not _means_strategy(tree, classes):
        return None
    return _written_out(where, tree, classes)


def _parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None


def _of_call(node: ast.expr) -> ast.expr:
    return node.func if isinstance(node, ast.Call) else node


def _name(node: ast.expr) -> str | None:
    """Return a class's name or path; None for what is neither."""
    if isinstance(node, ast.Attribute):
        before = _name(node.value)
        return None if before is None else f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def _means_strategy(node: ast.expr, classes: Mapping[str, type]) -> bool:
    """Tell whether an expression names a strategy, perhaps misspelt, or calls a class by its path."""
    name = _name(_of_call(node))
    if name is None:
        return False
    last, known = name.rpartition(".")[2].lower(), [each.lower() for each in classes]
    return bool(difflib.get_close_matches(last, known, n=1)) or ("." in name and isinstance(node, ast.Call))


def _written_out(option: str, node: ast.expr, classes: Mapping[str, type]) -> dict[str, Any]:
    if not isinstance(node, ast.Call):
        return {"class_path": _name(node)}
    name, text = str(_name(node.func)), ast.unparse(node)
    found = classes.get(name.rpartition(".")[2])
    if found is None and "." not in name:
        return {"class_path": name}  # the parser knows which names are near
    given = [_argument(option, text, each, classes) for each in node.args]
    arguments = {str(each.arg): _argument(option, text, each.value, classes) for each in node.keywords}
    if given:
        if found is None:
            raise UserError(f"{option}: {text}: give the arguments of a class of your own by name, {name}(name=value).")
        names = [each for each in inspect.signature(found).parameters if each not in ("args", "kwargs")]
        if len(given) > len(names) or set(names[: len(given)]) & arguments.keys():
            raise UserError(f"{option}: {text}: {name} takes {', '.join(names) or 'nothing'}, each once.")
        arguments = dict(zip(names, given, strict=False)) | arguments
    return {"class_path": name, "init_args": arguments}


def _argument(option: str, call: str, node: ast.expr, classes: Mapping[str, type]) -> Any:
    """Return a strategy among the arguments of a call as a class path, anything else as its value."""
    if _means_strategy(node, classes):
        return _written_out(option, node, classes)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise UserError(
            f"{option}: {call} has an argument that is neither a plain value nor a strategy; expected numbers, texts "
            'in quotes, such as "saturation", true or false as True or False, or another strategy, such as '
            "HSD(2, 0, 8). For anything else give class_path and init_args."
        ) from None
