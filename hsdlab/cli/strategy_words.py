"""Strategies on the command line as the tables write them: ``--strategies='[HSD(2, 0, 8), CALM(0.9)]'``.

They become class paths with arguments, the form that jsonargparse and configs have.
"""

import ast
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hsdlab.errors import UserError

LISTS = ("--strategies", "--first", "--model.skip_strategies")
ONE = ("--skip",)
"""The options that take a list of strategies, and one strategy."""


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
        if not equals and written and written[-1] in (*LISTS, *ONE):
            option, value = written.pop(), word
        if option in (*LISTS, *ONE) and (found := _classes(option, value, classes)) is not None:
            word = f"{option}={json.dumps(found)}"
        elif option != word and not equals:
            written.append(option)
        written.append(word)
    return written


def _classes(option: str, value: str, classes: Mapping[str, type]) -> list[Any] | dict[str, Any] | None:
    """Return what an option's value stands for; None where it is written in another way, such as YAML."""
    try:
        tree = ast.parse(value.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None
    nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    if not nodes or any(_name(node.func if isinstance(node, ast.Call) else node) is None for node in nodes):
        return None
    if option in ONE:
        return _written_out(option, tree, classes) if isinstance(tree, ast.Call) else None
    return [_written_out(option, node, classes) for node in nodes]


def _name(node: ast.expr) -> str | None:
    """Return a class's name or path; None for what is neither."""
    if isinstance(node, ast.Attribute):
        before = _name(node.value)
        return None if before is None else f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def _written_out(option: str, node: ast.expr, classes: Mapping[str, type]) -> dict[str, Any]:
    if not isinstance(node, ast.Call):
        return {"class_path": _name(node)}
    name, text = str(_name(node.func)), ast.unparse(node)
    found = classes.get(name.rpartition(".")[2])
    if found is None and "." not in name:
        return {"class_path": name}  # the parser knows which names are near
    try:
        given = [ast.literal_eval(each) for each in node.args]
        arguments = {str(each.arg): ast.literal_eval(each.value) for each in node.keywords}
    except ValueError:
        raise UserError(
            f"{option}: {text} has an argument that is no plain value; expected numbers, texts, true or false as "
            "True or False, such as HSD(2, 0, 8). For anything else give class_path and init_args."
        ) from None
    if given:
        if found is None:
            raise UserError(f"{option}: {text}: give the arguments of a class of your own by name, {name}(name=value).")
        names = [each for each in inspect.signature(found).parameters if each not in ("args", "kwargs")]
        if len(given) > len(names) or set(names[: len(given)]) & arguments.keys():
            raise UserError(f"{option}: {text}: {name} takes {', '.join(names) or 'nothing'}, each once.")
        arguments = dict(zip(names, given, strict=False)) | arguments
    return {"class_path": name, "init_args": arguments}
