"""The configs that come with hsdlab, by name: `hsdlab configs list | show NAME | copy NAME`.

A name is the path below configs/, with or without ``.yaml``: ``experiment/quickstart``. In a checkout the configs are
its folder configs/; a wheel carries a copy of it inside the package.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

import hsdlab
from hsdlab.errors import RunError, UserError

CONFIGS = "configs"
SUFFIX = ".yaml"
_LIKE_A_NAME = re.compile(r"[\w~][\w./\\~ -]*|\.{1,2}/[\w./\\~ -]+|/[\w./\\~ -]+")


def configs_folder() -> Path:
    """Find the folder of the packaged configs.

    Returns:
        configs/ in the package, or in a checkout beside it.
    """
    package = Path(hsdlab.__file__).parent
    inside = package / CONFIGS
    return inside if inside.is_dir() else package.parent / CONFIGS


def packaged_names() -> list[str]:
    """List the packaged configs.

    Returns:
        Paths below the folder without ``.yaml``, such as "experiment/quickstart", sorted.
    """
    folder = configs_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob(f"*{SUFFIX}"))


def packaged_config(name: str) -> Path | None:
    """Find a packaged config.

    Args:
        name: Such as "experiment/quickstart"; ``.yaml`` at its end and ``configs/`` or ``../`` before it, as they stand
            in commands and in `include`, change nothing.

    Returns:
        Its file; None where no packaged config has this name.
    """
    short = _short(name)
    return configs_folder() / f"{short}{SUFFIX}" if short in packaged_names() else None


def looks_like_a_name(value: str) -> bool:
    """Tell whether what follows ``--config`` can only be meant as a file or a name.

    Args:
        value: What follows. Settings given as a string hold other signs, such as a colon or a brace.

    Returns:
        False for settings, and for "null".
    """
    return _LIKE_A_NAME.fullmatch(value) is not None and value != "null"


def no_such_config(name: str) -> str:
    """Compose the sentence for a config that is neither a file nor packaged.

    Args:
        name: What was given.

    Returns:
        The sentence, with up to three packaged names that are near.
    """
    known = packaged_names()
    short = _short(name)
    by_last = {each.rpartition("/")[2]: each for each in known}
    near = [each for each in known if each.rpartition("/")[2] == short.rpartition("/")[2]]
    near += difflib.get_close_matches(short, known, n=3, cutoff=0.6)
    near += [by_last[each] for each in difflib.get_close_matches(short.rpartition("/")[2], by_last, n=3, cutoff=0.6)]
    meant = f" The nearest are {', '.join(list(dict.fromkeys(near))[:3])}." if near else ""
    return f"there is no file {name} and no packaged config of that name.{meant} `hsdlab configs list` lists them."


def copied(name: str, to: Path) -> Path:
    """Copy a packaged config, to change it.

    Args:
        name: The config.
        to: A file, or a folder in which it keeps its own name.

    Returns:
        The new file. What it includes is named as packaged configs are, so that the copy works anywhere.

    Raises:
        UserError: There is no such config.
        RunError: The file exists.
    """
    source = _found(name)
    target = to / source.name if to.is_dir() or not to.suffix else to
    if target.exists():
        raise RunError(f"{target} exists: remove it, or give another file or folder with --to.")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(_with_packaged_includes(source), encoding="utf-8")
    return target


def main(args: Sequence[str]) -> None:
    """Run `hsdlab configs`.

    Args:
        args: The command line after "configs".

    Raises:
        UserError: There is no such config.
        RunError: The file to write exists.
    """
    parser = argparse.ArgumentParser(
        prog="hsdlab configs", description="List, show or copy the configs that come with hsdlab."
    )
    commands = parser.add_subparsers(dest="command", metavar="list | show NAME | copy NAME")
    listing = commands.add_parser("list", help="List the names and what each config is for (the default).")
    listing.add_argument("words", nargs="*", metavar="WORD", help="List only names that contain the word.")
    commands.add_parser("show", help="Print a config.").add_argument("name", metavar="NAME")
    copy = commands.add_parser("copy", help="Copy a config, to change it.")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("--to", type=Path, default=Path(), help="File or folder to copy to; by default the current one.")
    given = parser.parse_args(list(args))
    if given.command == "show":
        sys.stdout.write(_found(given.name).read_text(encoding="utf-8"))
    elif given.command == "copy":
        target = copied(given.name, given.to)
        sys.stdout.write(f"Copied to {target}: use it with --config {target}\n")
    else:
        sys.stdout.write(listed(getattr(given, "words", [])))


def listed(words: Sequence[str] = ()) -> str:
    """List the packaged configs with the first sentence of each.

    Args:
        words: Only names that contain all of these; empty for all names.

    Returns:
        A line for each, with a line break at the end.

    Raises:
        UserError: No name contains all words.
    """
    found = [name for name in packaged_names() if all(word in name for word in words)]
    if not found:
        raise UserError(f"no packaged config has {' and '.join(words)} in its name: see `hsdlab configs list`.")
    width = max(map(len, found)) + 2
    lines = [f"{name:{width}}{_purpose(configs_folder() / f'{name}{SUFFIX}')}" for name in found]
    return "\n".join([*lines, "", "Use one: --config NAME. See one: hsdlab configs show NAME.", ""])


def _short(name: str) -> str:
    """Return a name without what commands and includes put before and after it."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in (".", "..", "")]
    return "/".join(parts).removeprefix(f"{CONFIGS}/").removesuffix(SUFFIX)


def _found(name: str) -> Path:
    path = packaged_config(name)
    if path is None:
        raise UserError(no_such_config(name))
    return path


def _purpose(path: Path) -> str:
    """Return the first sentence of a config's comment."""
    first = path.read_text(encoding="utf-8").split("\n# hsdlab ", 1)[0]
    text = " ".join(line.removeprefix("#").strip() for line in first.splitlines() if line.startswith("#"))
    return re.split(r"(?<=[.:;])\s", text, maxsplit=1)[0].rstrip(".:;")


def _with_packaged_includes(source: Path) -> str:
    """Return a packaged config's text with the names of what it includes in place of paths relative to it."""
    text = source.read_text(encoding="utf-8")
    top = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = top.value if isinstance(top, yaml.MappingNode) else []
    for node in reversed([each for key, value in pairs if key.value == "include" for each in value.value]):
        name = (source.parent / node.value).resolve().relative_to(configs_folder().resolve()).as_posix()
        text = text[: node.start_mark.index] + name + text[node.end_mark.index :]
    return text
