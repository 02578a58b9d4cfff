"""Files that are written whole or not at all, and faults of writing said in one sentence."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hsdlab.errors import RunError

UNFINISHED = ".unfinished"
"""How the names of files end that are being written; those that a kill left are removed by the next run."""

REASONS = {
    errno.ENOSPC: ("no space is left on its device", "Free some"),
    errno.EDQUOT: ("the quota of the user is used up", "Free some space"),
    errno.EROFS: ("its file system is read-only", "Give another folder"),
    errno.EACCES: ("the permission is missing", "Give a folder that you may write to"),
    errno.EPERM: ("the permission is missing", "Give a folder that you may write to"),
    errno.ENAMETOOLONG: ("its name is too long for the file system", "Give a shorter folder or name"),
    errno.ENOTDIR: ("a part of its path is no folder", "Give another folder"),
    errno.EIO: ("the device reports a fault", "Give a folder on another device"),
}
"""What is wrong and what to do, by the system's number of the error."""

_listeners: list[Callable[[Path], None]] = []


def fault_of_writing(path: Path, error: OSError) -> str:
    """Say why a file or folder could not be written, and what to do."""
    why, cure = REASONS.get(error.errno or 0, (error.strerror or str(error), "See that its folder can be written to"))
    return f"{path} could not be written: {why}. {cure}, and give the command again: what was finished is kept."


@contextmanager
def faults_of_writing(path: Path) -> Iterator[None]:
    """Within this, an error of the system is one of writing to `path`.

    Raises:
        RunError: In place of an OSError, naming the path and what to do.
    """
    try:
        yield
    except OSError as error:
        raise RunError(fault_of_writing(path, error)) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; at the end what was written there becomes the file, whole or not at all.

    Args:
        path: The file; its folder is made if it is missing. An interrupted or failed write leaves the earlier file.

    Raises:
        RunError: It could not be written: no space, no permission, and so on.
    """
    with faults_of_writing(path):
        _announce(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name[:40]}.{os.getpid()}{UNFINISHED}")
        try:
            yield unfinished
            _sync(unfinished)
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def replace_file(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all; see `whole_file`.

    Args:
        path: Its folder is made if it is missing.
        content: Text is encoded as UTF-8.
    """
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def append_whole(path: Path, content: bytes) -> None:
    """Append to a file; when this returns, the content is on the disk. After a failed write the file is as before.

    Args:
        path: The file; it and its folder are made if they are missing. No other process writes to it.
        content: What to append.

    Raises:
        RunError: It could not be written: no space, no permission, and so on.
    """
    with faults_of_writing(path):
        is_new = not path.exists()
        if is_new:
            _announce(path)
            path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                left = memoryview(content)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(before)
                raise
        if is_new:
            _sync(path.parent)


@contextmanager
def listening(listener: Callable[[Path], None]) -> Iterator[None]:
    """Within this, `listener` is told each path before a file is made or replaced there; it may refuse it."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def _announce(path: Path) -> None:
    for listener in _listeners:
        listener(path)


def _sync(path: Path) -> None:
    """Have the system bring a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows does not open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems sync no folder
            raise
    finally:
        os.close(descriptor)
