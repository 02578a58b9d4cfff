"""The files of an output folder that its runs wrote: a list in the folder. A file is added before it is made."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from hsdlab.errors import RunError
from hsdlab.records.files import UNFINISHED, append_whole, faults_of_writing, replace_file
from hsdlab.records.lock import LOCK_FILE

MANIFEST_FILE = ".hsdlab.written"
OURS, OPEN, CLOSED, FOREIGN = "file", "open", "closed", "foreign"
FINISHED, REMOVED = "finished", "removed"
_OURS_UNFINISHED = re.compile(rf"\..+\.\d+(\.earlier)?{re.escape(UNFINISHED)}")
_BOOKKEEPING = (MANIFEST_FILE, LOCK_FILE)


class Manifest:
    """The list of a folder.

    A line is a word and a path relative to the folder. Where other libraries choose the names, as in a folder of
    checkpoints, the whole folder is noted ("open") with the files of others in it ("foreign"). When the run ends, its
    files there are noted one by one ("closed"). A process killed at any moment leaves a list of all that was written.

    Args:
        folder: The output folder of the run.

    Attributes:
        finished: Whether the list says that the run has come to its end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / MANIFEST_FILE
        self._files: set[str] = set()
        self._open: set[str] = set()
        self._foreign: set[str] = set()
        self.finished = False
        self._read()

    @property
    def exists(self) -> bool:
        """Whether a run of hsdlab has written here."""
        return self.file.is_file()

    def files(self) -> tuple[list[str], list[str]]:
        """List the files in the folder, without the list and the lock.

        Returns:
            The names of the files that runs of hsdlab wrote, and those of all others, relative to the folder.
        """
        self._read()  # other processes of the run add theirs to the list
        ours: list[str] = []
        foreign: list[str] = []
        for name in walk(self.folder):
            (ours if self.lists(name) else foreign).append(name)
        return ours, foreign

    def lists(self, name: str) -> bool:
        """Say whether a run wrote a file.

        Args:
            name: Relative to the folder, with "/" between the parts.

        Returns:
            True where the list has the name, or an open folder in which it is not foreign.
        """
        if name in self._files:
            return True
        return name not in self._foreign and any(name.startswith(folder) for folder in self._open)

    def note(self, path: Path, is_first: bool = True) -> None:
        """Add a file that is about to be made. A path outside the folder is ignored.

        Args:
            path: The file.
            is_first: Whether this is the process that holds the folder. The other processes of a run rely on its check.

        Raises:
            RunError: The file exists, and no run wrote it.
        """
        name = self._name(path)
        if name is None or name in _BOOKKEEPING or self.lists(name):
            return
        if is_first and os.path.lexists(path):
            raise RunError(
                f"{path} is there, and no run of hsdlab wrote it: move it away, or give another folder with --output."
            )
        self.adopt([name])

    def adopt(self, names: Iterable[str]) -> None:
        """Add files to the list without any check.

        Args:
            names: Relative to the folder; the files need not exist.
        """
        self._write((OURS, name) for name in names)

    def open(self, folders: Iterable[str]) -> None:
        """Add folders in which other libraries will make files of any names.

        Args:
            folders: Relative to the folder. Files of others that are already there are noted as such.
        """
        wanted = tuple(f"{each}/" for each in folders)
        _, foreign = self.files()
        self._write((FOREIGN, name) for name in foreign if name.startswith(wanted))
        self._write((OPEN, name) for name in wanted)

    def close(self) -> None:
        """Add the files in the open folders one by one."""
        if self._open:
            ours, _ = self.files()
            self._write((OURS, name) for name in ours if name not in self._files)
            self._write((CLOSED, name) for name in sorted(self._open))

    def finish(self) -> None:
        """Note that the run has come to its end."""
        self._write([(FINISHED, "run")])

    def repair(self) -> None:
        """Drop a last line that a kill left incomplete."""
        if self.exists and not (content := self.file.read_bytes()).endswith(b"\n"):
            os.truncate(self.file, content.rfind(b"\n") + 1)

    def remove(self) -> None:
        """Remove what the runs wrote, and folders that are then empty; run.json goes last, and the list stays empty.

        Raises:
            RunError: A file lies outside the folder, behind a symbolic link, or cannot be removed.
        """
        ours, _ = self.files()
        inside = self.folder.resolve()
        for path in (self.folder / name for name in self._files):
            if os.path.lexists(path) and not path.parent.resolve().is_relative_to(inside):
                raise RunError(f"{path} lies outside {self.folder}, behind a symbolic link: remove it yourself.")
        if self.finished:
            self._write([(REMOVED, "run")])
        for name in sorted(ours, key=lambda name: (name == "run.json", name)):
            path = self.folder / name
            with faults_of_writing(path):
                path.unlink(missing_ok=True)
        for parent in sorted({parent for name in ours for parent in Path(name).parents}, reverse=True):
            if parent != Path() and not any((self.folder / parent).iterdir()):
                (self.folder / parent).rmdir()
        replace_file(self.file, b"")
        self._files, self._open, self._foreign, self.finished = set(), set(), set(), False

    def forget(self) -> None:
        """Remove the list, if the folder holds nothing else.

        Beside files of others the list stays, since a run may then start there.
        """
        if not any(True for _ in walk(self.folder)):
            with faults_of_writing(self.file):
                self.file.unlink(missing_ok=True)

    def _name(self, path: Path) -> str | None:
        path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(self.folder))
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else None

    def _read(self) -> None:
        for line in self.file.read_bytes().split(b"\n")[:-1] if self.file.is_file() else ():
            word, _, name = os.fsdecode(line).partition(" ")
            self._take(word, name)

    def _take(self, word: str, name: str) -> None:
        if Path(name).is_absolute() or ".." in Path(name).parts:  # not by us
            return
        if word in (FINISHED, REMOVED):
            self.finished = word == FINISHED
        elif word == OPEN:
            self._open.add(name)
        elif word == CLOSED:
            self._open.discard(name)
            self._foreign = {each for each in self._foreign if not each.startswith(name)}
        elif word in (OURS, FOREIGN) and not name.endswith("/"):
            (self._files if word == OURS else self._foreign).add(name)

    def _write(self, entries: Iterable[tuple[str, str]]) -> None:
        listed = list(entries)
        if listed:
            append_whole(self.file, b"".join(os.fsencode(f"{word} {name}") + b"\n" for word, name in listed))
        for word, name in listed:
            self._take(word, name)


def unfinished_files(folder: Path) -> Iterator[Path]:
    """Find what killed processes were writing.

    Args:
        folder: Searched with all folders below it.

    Yields:
        The path of each unfinished file or folder.
    """
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if _OURS_UNFINISHED.fullmatch(name):
                yield Path(parent, name)
        folders[:] = [name for name in folders if not name.endswith(UNFINISHED)]


def walk(folder: Path) -> Iterator[str]:
    """List what a folder holds, without the list and the lock.

    Args:
        folder: The folder; one that does not exist holds nothing.

    Yields:
        The names of all files and links below the folder, relative to it.
    """
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        folders[:] = sorted(name for name in folders if not name.endswith(UNFINISHED))
        for name in sorted([*files, *links]):
            relative = Path(parent, name).relative_to(folder).as_posix()
            if relative not in _BOOKKEEPING and not (name.startswith(".") and name.endswith(UNFINISHED)):
                yield relative
