"""What is refused of a config as a text, before the parser meets it: what is no plain mapping, or not what it seems."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from hsdlab.errors import UserError

_DEEPEST = 60  # levels; no option needs ten
_LARGEST = 200_000  # values
_MERGE = "tag:yaml.org,2002:merge"
_GROUPS = ("model", "trainer")
"""Options that are groups of others; the parser would pass over what is no mapping."""
_PLAIN = {
    f"tag:yaml.org,2002:{name}"
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge", "timestamp", "value")
}


def check_value(text: str, option: str) -> None:
    """Refuse a value on the command line that sets a key twice, or that references to its own parts make endless.

    Args:
        text: What follows the option; if it is no YAML, it is a plain text.
        option: For messages.

    Raises:
        UserError: Naming the option.
    """
    if not any(sign in text for sign in "&[{"):  # a plain text or number
        return
    node = _composed(text, option, plain_text=True)
    _check_size(node, option)
    for each in [] if node is None else _nodes(node):
        if isinstance(each, yaml.MappingNode) and all(isinstance(key, yaml.ScalarNode) for key, _ in each.value):
            names = [key.value for key, _ in each.value if key.tag != _MERGE]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise UserError(f"{option}: the key {twice!r} is there twice; keep one of the two.")


def check_config(file: Path, where: str) -> None:
    """Refuse a config that is no plain mapping of options to values, or one that is not what it seems.

    Args:
        file: The config.
        where: For messages.

    Raises:
        UserError: It is no text in UTF-8, no YAML, empty, no mapping, sets a key twice, holds objects of other
            programs, is nested too deep, or its references to parts of itself would make it endless.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: the config is no text in UTF-8; expected YAML or JSON.") from error
    node = _composed(text, where)
    if not isinstance(node, yaml.MappingNode):
        got = "is empty" if node is None else f"holds a {'list' if isinstance(node, yaml.SequenceNode) else 'value'}"
        raise UserError(f"{where}: the config {got}; expected options and their values, such as `output: runs/mine`.")
    for key, value in node.value:
        if key.value in _GROUPS and not isinstance(value, yaml.MappingNode):
            raise UserError(
                f"{where}, line {key.start_mark.line + 1}: {key.value} is no mapping; expected its options and their "
                "values, indented below it."
            )
    _check_size(node, where)
    for each in _nodes(node):
        line = f"{where}, line {each.start_mark.line + 1}"
        if each.tag not in _PLAIN:
            raise UserError(f"{line}: {each.tag} is no plain value; a config holds texts, numbers, lists and mappings.")
        if isinstance(each, yaml.MappingNode):
            _check_keys(each, where)


def _composed(text: str, where: str, plain_text: bool = False) -> yaml.Node | None:
    """Return a YAML text as nodes; a part that is referred to is one node, however often."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise UserError(
            f"{where}: lists or mappings are nested too deep; expected at most {_DEEPEST} levels."
        ) from None
    except yaml.YAMLError as error:
        if plain_text:
            return None
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        hint = ": indent with spaces, not with tabs" if "\\t" in what else ""
        raise UserError(f"{where}{line}: this is no YAML ({what}){hint}. Expected options and their values.") from error


def _too_deep(where: str) -> UserError:
    return UserError(f"{where}: lists or mappings are nested too deep; expected at most {_DEEPEST} levels.")


def _check_size(node: yaml.Node | None, where: str) -> None:
    """Count what a text means when all of its references are written out, without doing it."""
    sizes: dict[int, int] = {}

    def size(part: yaml.Node, above: tuple[int, ...]) -> int:
        if id(part) in above:
            raise UserError(f"{where}: an alias (*name) stands inside of what it refers to; write the values out.")
        if len(above) > _DEEPEST:
            raise _too_deep(where)
        if id(part) not in sizes:
            sizes[id(part)] = 1 + sum(size(each, (*above, id(part))) for each in _parts(part))
        return sizes[id(part)]

    if node is not None and size(node, ()) > _LARGEST:
        raise UserError(
            f"{where}: its aliases (*name) stand for more than {_LARGEST} values; expected a config that a person "
            "could write out."
        )


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield a node and all below it, each once."""
    seen: set[int] = set()
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += _parts(each)


def _check_keys(mapping: yaml.MappingNode, where: str) -> None:
    """Refuse a key that stands twice in one mapping: YAML takes the last one without a word."""
    lines: dict[str, int] = {}
    for key, _ in mapping.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{where}, line {line}: a key is a list or mapping; expected the name of an option.")
        if key.value in lines and key.tag != _MERGE:
            raise UserError(
                f"{where}, line {line}: {key.value!r} stands in line {lines[key.value]} already; keep one of the two."
            )
        lines[key.value] = line
