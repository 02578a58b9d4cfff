"""Checkpoints and exports are written beside their place and moved there once they are whole and on the disk.

A kill at any moment, a full disk or a temporary folder on another file system leaves what was there before.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hsdlab.errors import RunError, UserError

_SPARE_BYTES = 2**18  # for names, headers and what is no tensor
_GO_ON = "The same command with --ckpt_path=last then goes on with the last checkpoint."


@contextmanager
def whole_file(path: Path, size_bytes: int) -> Iterator[Path]:
    """Give a path beside `path` to write to; move it there when the block has ended without an error.

    Args:
        path: Of the file; its folder is made if it is missing.
        size_bytes: What it will hold, about: free space for it is checked first.

    Raises:
        RunError: There is no room, or it could not be written; the file that was there is kept.
    """
    with _unfinished(path, size_bytes) as unfinished:
        yield unfinished
        _to_disk(unfinished)
        os.replace(unfinished, path)
        _to_disk(path.parent)


@contextmanager
def whole_folder(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Give a new folder beside `folder` to write to; move it there when the block has ended without an error.

    Args:
        folder: What is written; an earlier one is removed when the new one is whole.
        size_bytes: What it will hold, about: free space for it is checked first.

    Raises:
        RunError: There is no room, or it could not be written; the folder that was there is kept.
    """
    with _unfinished(folder, size_bytes) as unfinished:
        unfinished.mkdir()
        yield unfinished
        for path in sorted(unfinished.rglob("*")):
            _to_disk(path)
        _to_disk(unfinished)
        earlier = folder.with_name(f".{folder.name}.{os.getpid()}.earlier")
        if folder.exists():
            os.replace(folder, earlier)
        os.replace(unfinished, folder)
        _to_disk(folder.parent)
        _remove(earlier)


@contextmanager
def _unfinished(path: Path, size_bytes: int) -> Iterator[Path]:
    """Give a free path beside `path`, those of killed runs removed; it is not there afterwards."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_over in path.parent.glob(f".{path.name}.*"):
            _remove(left_over)
        _check_room(path, size_bytes + _SPARE_BYTES)
        yield unfinished
    except UserError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' own for a full disk
        raise RunError(
            f"{path} could not be written: {_reason(error)}. What was there before is kept. Free some space, or mend "
            f"the permissions of {path.parent}. {_GO_ON}"
        ) from error
    finally:
        _remove(unfinished)


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


def _check_room(path: Path, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < size_bytes:
        raise RunError(
            f"No space left on device for {path}: it takes about {size_bytes / 1e6:.0f} MB, and {free_bytes / 1e6:.0f} "
            f"MB are free. What was there before is kept. Free some space. {_GO_ON}"
        )


def _reason(error: Exception) -> str:
    cause = error if isinstance(error, OSError) else error.__cause__ or error.__context__ or error
    if isinstance(cause, OSError) and cause.errno is not None:
        return "No space left on device" if cause.errno == errno.ENOSPC else os.strerror(cause.errno)
    return str(error).partition("\n")[0].rstrip(". ")


def _to_disk(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
