"""Weights on disk: errors of torch and safetensors for a full disk, and a check that reads weights back."""

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
    """Turn torch's and safetensors' errors while they write into the errors of the system that caused them.

    Yields:
        Nothing. A UserError passes unchanged.

    Raises:
        OSError: Within the block, a RuntimeError or SafetensorError was raised.
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

    Args:
        folder: Holds one or more .safetensors files.

    Raises:
        RunError: There is no such file, or a number is not finite.
        SafetensorError: A file is not complete.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RunError(f"{folder}: no weights were written; expected a .safetensors file.")
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  it is no dictionary
                if not torch.isfinite(weights.get_tensor(name)).all():
                    raise RunError(f"{file}: {name} holds numbers that are not finite.")
