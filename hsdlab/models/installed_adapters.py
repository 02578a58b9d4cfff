"""The adapters and small models of installed distributions, found through the entry-point group ``hsdlab.adapters``.

An entry point names an adapter, or a whole model, and holds the dotted path of its folder::

    [project.entry-points."hsdlab.adapters"]
    smollm2-135m-e2e = "hsdlab_adapters.e2e"
    t5-tiny-tables = "hsdlab_adapters.t5_tiny_tables"

hsdlab finds the folder and imports nothing, so that no code of such a distribution runs.
"""

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from hsdlab.errors import UserError

GROUP = "hsdlab.adapters"
COMPANION = "hsdlab-adapters"
HOW_TO_GET_THEM = (
    f"The adapters of hsdlab's results are the distribution {COMPANION}, which is not installed: run "
    "`pip install ./adapters` in a checkout of hsdlab."
)


@dataclass(frozen=True)
class InstalledAdapter:
    """An adapter, or a whole model, in an installed distribution.

    Attributes:
        name: What follows ``embedded:``.
        distribution: Name of the distribution.
        version: Version of the distribution; empty for an unnamed one.
        folder: Its folder; None where the distribution lacks the folder that it names.
    """

    name: str
    distribution: str
    version: str
    folder: Path | None


def installed_adapters() -> dict[str, InstalledAdapter]:
    """List the adapters and models of all installed distributions.

    Returns:
        Name (what follows ``embedded:``) to adapter, in the order of the names.

    Raises:
        UserError: Two distributions have adapters of the same name.
    """
    found: dict[str, InstalledAdapter] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        adapter = _adapter(point)
        other = found.setdefault(point.name, adapter)
        if other.distribution != adapter.distribution:
            raise UserError(
                f"the distributions {other.distribution} and {adapter.distribution} both contain an adapter or model "
                f"called {point.name!r}; uninstall one of them"
            )
    return found


def has_companion(adapters: dict[str, InstalledAdapter]) -> bool:
    """Say whether hsdlab-adapters, the distribution with the adapters of hsdlab's results, is installed.

    Args:
        adapters: What `installed_adapters` returned.

    Returns:
        True where one of them is from that distribution.
    """
    return any(adapter.distribution == COMPANION for adapter in adapters.values())


def _adapter(point: EntryPoint) -> InstalledAdapter:
    distribution = point.dist
    return InstalledAdapter(
        name=point.name,
        distribution="an unnamed distribution" if distribution is None else distribution.name,
        version="" if distribution is None else distribution.version,
        folder=_folder(point.value),
    )


def _folder(dotted: str) -> Path | None:
    """Return the folder of a dotted path; its first part alone is looked up, which imports nothing."""
    top, *below = dotted.strip().split(".")
    spec = find_spec(top)
    places = [] if spec is None else (spec.submodule_search_locations or [])
    folders = (Path(place).joinpath(*below) for place in places)
    return next((folder for folder in folders if folder.is_dir()), None)
