"""Weights on disk: libraries' own errors of a full disk, and weights read back before anything relies on them."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hsdlab.errors import RunError, UserError


@contextmanager
def errors_of_the_system() -> Iterator[None]:
    """Within this, torch's and safetensors' errors while they write are what they come of: errors of the system.

    Raises:
        OSError: In place of a RuntimeError or SafetensorError.
    """
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, SafetensorError) as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError):
            raise cause from error
        full = "space" in str(error) or "os error 28" in str(error)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else OSError(str(error)) from error


def check_safetensors(folder: Path) -> None:
    """Read every number in a folder's weights back.

    Raises:
        RunError: There are no weights, or one is not finite.
        SafetensorError: A file is not whole.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RunError(f"{folder}: no weights were written; expected a .safetensors file.")
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  it is no dictionary
                if not torch.isfinite(weights.get_tensor(name)).all():
                    raise RunError(f"{file}: {name} holds numbers that are not finite.")
