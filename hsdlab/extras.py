"""Packages that only some of hsdlab's work needs. pip installs them with an extra, ``hsdlab[tune]``."""

from collections.abc import Iterator
from contextlib import contextmanager

from hsdlab.errors import RunError


@contextmanager
def of_extra(extra: str, purpose: str) -> Iterator[None]:
    """Import, inside the block, packages that an extra installs.

    Args:
        extra: Name of the extra, a key of ``optional-dependencies`` in pyproject.toml.
        purpose: What needs it, as the subject of a sentence, such as "`tune`".

    Yields:
        Nothing.

    Raises:
        RunError: A package is not installed; the message names it and the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise RunError(
            f"{purpose} needs the package {error.name}, which is not installed: run `pip install 'hsdlab[{extra}]'`."
        ) from error
