"""Configs that include others: the files that a config is made of, in the order in which they apply.

A config names others under ``include``, by paths relative to itself::

    # configs/experiment/quickstart.yaml
    include: [../model/smollm2_135m.yaml, ../data/docstrings.yaml]
    output: runs/quickstart

A path at which there is no file is looked for among the configs that come with hsdlab: ``--config
experiment/quickstart`` and ``include: [model/smollm2_135m]`` work in any folder.

``--config quickstart.yaml`` then means ``--config smollm2_135m.yaml --config docstrings.yaml``, and last what
quickstart.yaml says itself: what comes later wins. jsonargparse merges the files; this module only lists them.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from hsdlab.cli.config_checks import check_config
from hsdlab.cli.packaged_configs import looks_like_a_name, no_such_config, packaged_config
from hsdlab.errors import UserError

INCLUDE = "include"
OPTIONS = ("-c", "--config", "--confi", "--conf", "--con", "--co")
"""How a command line names a config: argparse completes what is cut short."""


def config_files(file: str | Path) -> list[Path]:
    """List the files that a config is made of.

    Args:
        file: The config.

    Returns:
        What it includes, each with what that includes before it, in the order given; last the config itself.

    Raises:
        UserError: For a file that is no config, an included file that does not exist, for files that include each other
            in a circle, and for an ``include`` that is no list of paths. The message names the chain of files.
    """
    return _files_after(Path(file), ())


def with_included_configs(args: Sequence[str]) -> list[str]:
    """Replace each ``--config FILE`` of a command line by one ``--config=`` for each file that FILE is made of.

    Args:
        args: The command line. What follows ``--config`` and is neither a file nor the name of a packaged config
            (settings as a string, say) stays.

    Returns:
        The longer command line.

    Raises:
        UserError: There is no such config; see `config_files` too.
    """
    expanded: list[str] = []
    words = iter(args)
    for word in words:
        option, value = _option_and_value(word)
        if option not in OPTIONS or (value is None and (value := next(words, None)) is None):
            expanded.append(word)
        elif (file := value if os.path.isfile(value) else packaged_config(value)) is not None:
            expanded += [f"--config={each}" for each in config_files(file)]
        elif looks_like_a_name(value) and not os.path.isdir(value):
            raise UserError(f"--config: {no_such_config(value)}")
        else:
            expanded.append(f"--config={value}")
    return expanded


def place_of(key: str, files: Sequence[Path]) -> str:
    """Find where a key gets its value.

    Args:
        key: Dotted, such as "model.num_beams"; the arguments of a class may stand below ``init_args``.
        files: Configs, in the order in which they apply.

    Returns:
        The last config that sets the key, and the line, such as "mine.yaml, line 3"; "" where none does.
    """
    for file in reversed(files):
        try:
            node: yaml.Node | None = top_level(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
        line = None
        for part in key.split("."):
            found = next(_pairs(node, part), None)
            if found is None:
                line = None
                break
            line, node = found[0].start_mark.line + 1, found[1]
        if line is not None:
            return f"{file}, line {line}"
    return ""


def _pairs(node: yaml.Node | None, part: str) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Find the key and the value of a name in a mapping, or below its ``init_args``."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value == part:
            yield key, value
        elif key.value == "init_args":
            yield from _pairs(value, part)


def without_include(text: str) -> str:
    """Return a config's own settings.

    Args:
        text: The config.

    Returns:
        The same without ``include``; the values are untouched, as they were written.
    """
    top = top_level(text)
    if top is None or _included(top) is None:
        return text
    top.value = [(key, value) for key, value in top.value if key.value != INCLUDE]
    return yaml.serialize(top, Dumper=yaml.SafeDumper, allow_unicode=True)


def with_strategy_as_list(text: str) -> str:
    """Turn the strategy of a config under configs/strategy, ``skip``, into a list of one, ``strategies``.

    Args:
        text: The config.

    Returns:
        The same, where it names no strategy, or ``strategies`` itself; the values are untouched.
    """
    top = top_level(text)
    names = [] if top is None else [key.value for key, _ in top.value]
    if top is None or "skip" not in names or any(name.startswith("strategies") for name in names):
        return text
    for index, (key, value) in enumerate(top.value):
        if key.value == "skip":
            key.value = "strategies"
            top.value[index] = (key, yaml.SequenceNode("tag:yaml.org,2002:seq", [value]))
    return yaml.serialize(top, Dumper=yaml.SafeDumper, allow_unicode=True)


def top_level(text: str) -> yaml.MappingNode | None:
    """Parse a YAML text into its nodes, which know their lines.

    Args:
        text: The config.

    Returns:
        The mapping at its top; None where the text is no mapping or no YAML, which the parser reports later.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    return node if isinstance(node, yaml.MappingNode) else None


def _option_and_value(word: str) -> tuple[str, str | None]:
    """Split ``--config=FILE``, ``-c=FILE`` and ``-cFILE``; of a word without a value the second part is None."""
    if re.match("-c.", word):
        return "-c", word[2:].removeprefix("=")
    option, equals, value = word.partition("=")
    return option, value if equals else None


def _included(top: yaml.MappingNode) -> yaml.Node | None:
    return next((value for key, value in top.value if key.value == INCLUDE), None)


def _files_after(file: Path, chain: tuple[Path, ...]) -> list[Path]:
    """List the files of a config that was reached through a chain of others."""
    if file.resolve() in [each.resolve() for each in chain]:
        raise UserError(f"{_chain(chain, file)}: configs include each other in a circle. Take one `{INCLUDE}` out.")
    if not file.is_file():
        raise UserError(
            f"{_chain(chain, file)}: {no_such_config(str(file))} The paths under `{INCLUDE}` are relative to the file "
            "that they stand in."
        )
    check_config(file, _chain(chain, file))
    names = _names(file, chain)
    files = [_included_file(file, name) for name in names]
    return [each for included in files for each in _files_after(included, (*chain, file))] + [file]


def _included_file(file: Path, name: str) -> Path:
    """Return the file that a config includes: beside it, or else the packaged one of that name."""
    beside = Path(os.path.normpath(file.parent / name))
    return beside if beside.is_file() else packaged_config(name) or beside


def _names(file: Path, chain: tuple[Path, ...]) -> list[str]:
    """Return the paths under a file's ``include``."""
    top = top_level(file.read_text(encoding="utf-8"))
    node = None if top is None else _included(top)
    if node is None:
        return []
    entries = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(entry, yaml.ScalarNode) and entry.value for entry in entries) or entries == [node]:
        raise UserError(
            f"{_chain(chain, file)}: `{INCLUDE}` is no list of paths; expected such as "
            f"`{INCLUDE}: [../model/smollm2_135m.yaml]`."
        )
    return [entry.value for entry in entries]


def _chain(chain: tuple[Path, ...], file: Path) -> str:
    return " includes ".join(str(each) for each in (*chain, file))
