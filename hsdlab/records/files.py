"""Files that are written whole or not at all, and faults of writing said in one sentence."""

import errno
import glob
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hsdlab.errors import RunError

UNFINISHED = ".unfinished"
"""How the names of files end that are being written; those that a kill left are removed by the next run."""

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
def whole_file(path: Path, size_bytes: int = 0) -> Iterator[Path]:
    """Give a path to write to; at the end what was written there becomes the file, whole or not at all.

    Args:
        path: The file; its folder is made if it is missing. An interrupted or failed write leaves the earlier file.
        size_bytes: What it will hold, about; where there is no room for so much nothing is written.

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
    """Give a new folder to write into; at the end it becomes the folder, whole or not at all.

    Args:
        folder: What is written. An interrupted or failed write leaves the earlier folder, which is removed at the end.
        size_bytes: What it will hold, about; where there is no room for so much nothing is written.

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
            left = memoryview(content)
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except BaseException as error:
                if left or isinstance(error, OSError):  # a signal after the write takes nothing back
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


@contextmanager
def _unfinished(path: Path, size_bytes: int) -> Iterator[Path]:
    """Give a free path beside `path`, those of killed processes removed; after an error it is removed too."""
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
