"""Files that are written whole or not at all, and errors of writing as one sentence for the user."""

import errno
import glob
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hsdlab.errors import RunError

UNFINISHED = ".unfinished"
"""Suffix of files that are being written. The next run removes those that a killed process left."""

REASONS = {
    errno.ENOSPC: ("no space left on device", "Free some"),
    errno.EDQUOT: ("the quota of the user is used up", "Free some space"),
    errno.EROFS: ("its file system is read-only", "Give another folder"),
    errno.EACCES: ("the permission is missing", "Give a folder that you may write to"),
    errno.EPERM: ("the permission is missing", "Give a folder that you may write to"),
    errno.ENAMETOOLONG: ("its name is too long for the file system", "Give a shorter folder or name"),
    errno.ENOTDIR: ("a part of its path is no folder", "Give another folder"),
    errno.EIO: ("the device reports a fault", "Give a folder on another device"),
}
"""Error number of the system to what is wrong and what to do."""

_listeners: list[Callable[[Path], None]] = []


def fault_of_writing(path: Path, error: OSError) -> str:
    """Say why a file or folder could not be written, and what to do.

    Args:
        path: What could not be written.
        error: The system's error. An error number without an entry in `REASONS` is described in the system's own words.

    Returns:
        The message for the user, one line.
    """
    why, cure = REASONS.get(error.errno or 0, (error.strerror or str(error), "See that its folder can be written to"))
    return f"{path} could not be written: {why}. {cure}, and run the command again: what was finished is kept."


@contextmanager
def faults_of_writing(path: Path) -> Iterator[None]:
    """Turn the system's errors inside the block into errors of writing to a path.

    Args:
        path: The file or folder that the block writes; the message names it.

    Yields:
        Nothing.

    Raises:
        RunError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunError(fault_of_writing(path, error)) from error


@contextmanager
def whole_file(path: Path, size_bytes: int = 0) -> Iterator[Path]:
    """Write a file whole or not at all: the block writes to another path, which replaces the file at the end.

    Args:
        path: The file; its folder is made if it is missing. An interrupted or failed write leaves the earlier file.
        size_bytes: Expected size. With less free space nothing is written.

    Yields:
        The path to write to, in the same folder. The block has to make the file.

    Raises:
        RunError: It could not be written: no space, no permission, and so on.
    """
    with faults_of_writing(path):
        _announce(path)
        with _unfinished(path, size_bytes) as unfinished:
            yield unfinished
            _sync(unfinished)
            os.replace(unfinished, path)
        _sync(path.parent)


@contextmanager
def whole_folder(folder: Path, size_bytes: int = 0) -> Iterator[Path]:
    """Write a folder whole or not at all: the block writes into a new folder, which replaces the folder at the end.

    Args:
        folder: What is written. After an interrupted or failed write the earlier folder remains; else it is removed.
        size_bytes: Expected size. With less free space nothing is written.

    Yields:
        The folder to write into, new and empty, beside the other.

    Raises:
        RunError: It could not be written: no space, no permission, and so on.
    """
    with faults_of_writing(folder):
        with _unfinished(folder, size_bytes) as unfinished:
            unfinished.mkdir()
            yield unfinished
            for path in sorted(unfinished.rglob("*")):
                _sync(path)
                _announce(folder / path.relative_to(unfinished))
            _sync(unfinished)
            earlier = _unfinished_name(folder, ".earlier")
            if folder.exists():
                os.replace(folder, earlier)
            os.replace(unfinished, folder)
        _sync(folder.parent)
        _remove(earlier)


def replace_file(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all; see `whole_file`.

    Args:
        path: Its folder is made if it is missing.
        content: Text is encoded as UTF-8.

    Raises:
        RunError: It could not be written: no space, no permission, and so on.
    """
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def append_whole(path: Path, content: bytes) -> None:
    """Append to a file. When this returns, the content is on the disk; after a failed write the file is as before.

    Args:
        path: The file; it and its folder are made if they are missing. No other process may write to it.
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
            left = memoryview(content)
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except BaseException as error:
                if left or isinstance(error, OSError):  # a signal that arrives after the write undoes nothing
                    file.truncate(before)
                raise
        if is_new:
            _sync(path.parent)


@contextmanager
def listening(listener: Callable[[Path], None]) -> Iterator[None]:
    """Call a function before each file that the block makes or replaces with this module.

    Args:
        listener: Gets the path of the file; by raising an error it prevents the write.

    Yields:
        Nothing.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def _unfinished(path: Path, size_bytes: int) -> Iterator[Path]:
    """Yield a free path beside `path`, and remove it after an error. Those of killed processes are removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < size_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    unfinished = _unfinished_name(path)
    for left_over in path.parent.glob(f"{glob.escape(f'.{path.name[:40]}.')}*{UNFINISHED}"):
        _remove(left_over)
    try:
        yield unfinished
    except BaseException:
        _remove(unfinished)
        raise


def _unfinished_name(path: Path, which: str = "") -> Path:
    return path.with_name(f".{path.name[:40]}.{os.getpid()}{which}{UNFINISHED}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _announce(path: Path) -> None:
    for listener in _listeners:
        listener(path)


def _sync(path: Path) -> None:
    """Make the system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows does not open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
