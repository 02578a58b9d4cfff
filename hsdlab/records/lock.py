"""One holder of an output folder at a time: a file in the folder names the process that writes there.

A process that was killed leaves the file. The next process sees from process number, start time and boot of the
machine that the owner is gone, and takes the file over. Whether an owner on another machine or in another container
still runs cannot be known. In that case the user has to remove the file.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from hsdlab.errors import RunError
from hsdlab.records.files import faults_of_writing

LOCK_FILE = ".hsdlab.lock"
MOST_CHARACTERS = 200  # of the command in a message


@dataclass(frozen=True)
class Owner:
    """The process that holds a folder.

    Attributes:
        host: Name of its machine.
        pid: Process number.
        started: When the process began, in clock ticks since the machine started; None where the system does not say.
        boot: The system's identifier of this start of the machine; None where the system does not say.
        namespace: In which process numbers count, a container's or the machine's; None where the system does not say.
        command: Its command line.
        date_utc: When it took the folder, ISO 8601.
    """

    host: str
    pid: int
    started: str | None
    boot: str | None
    namespace: str | None
    command: str
    date_utc: str

    @classmethod
    def this_process(cls) -> Owner:
        """Describe the calling process.

        Returns:
            An owner whose `date_utc` is now.
        """
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_start_of(os.getpid()),
            boot=_boot(),
            namespace=_namespace(),
            command=shlex.join(["python", *sys.argv]),
            date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def is_this_process(self) -> bool:
        """Compare the owner with the calling process.

        Returns:
            True where all but command and date are equal.
        """
        now = Owner.this_process()
        return _identity(self) == _identity(now)

    def is_gone(self) -> bool:
        """Find out whether the process has ended.

        Returns:
            True only where that is certain; False for an owner on another machine or in another container.
        """
        if self.host != socket.gethostname():
            return False
        if self.boot != _boot():
            return True  # the machine was started again since
        return self.can_be_checked() and (not _runs(self.pid) or _start_of(self.pid) != self.started)

    def can_be_checked(self) -> bool:
        """Say whether the calling process can see the owner's process.

        Returns:
            True on the same machine and in the same namespace of process numbers.
        """
        return self.host == socket.gethostname() and self.namespace == _namespace()


class FolderLock:
    """Holds a folder for this process, across nested `take` and `release`.

    Args:
        folder: The folder; `take` makes it if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / LOCK_FILE
        self._holds = False

    @property
    def is_held(self) -> bool:
        """Whether this object took the folder, and has not released it."""
        return self._holds

    def is_of_this_process(self) -> bool:
        """Find out whether this process holds the folder.

        Returns:
            True where this object or another one of the process took it.
        """
        owner = _read(self.file)
        return isinstance(owner, Owner) and owner.is_this_process()

    def check(self) -> None:
        """Refuse a folder that another process holds, and change nothing.

        Raises:
            RunError: Another process holds it, or may hold it; the message names the process.
        """
        self._stale()

    def take(self) -> None:
        """Hold the folder. The lock of a process that is gone is taken over; one of this process is left as it is.

        Raises:
            RunError: Another process holds it, or it cannot be written to.
        """
        with faults_of_writing(self.file):
            while not self._taken():
                time.sleep(0.001)

    def release(self) -> None:
        """Release the folder, if this object holds it."""
        if self._holds:
            self._holds = False
            if self.is_of_this_process():
                with faults_of_writing(self.file):
                    self.file.unlink(missing_ok=True)

    def _taken(self) -> bool:
        """Try to take the lock; False where it has to be tried again, since something has just changed."""
        stale = self._stale()
        if stale == "own":  # an outer run of this process holds it, and will release it
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_name(f"{LOCK_FILE}.{socket.gethostname()[:40]}.{os.getpid()}.unfinished")
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                json.dump(asdict(Owner.this_process()), file)
                file.flush()
                os.fsync(file.fileno())
            self._holds = self._taken_over(unfinished) if stale == "stale" else self._linked(unfinished)
        except FileNotFoundError:  # the process that held the folder has just removed it
            return False
        finally:
            unfinished.unlink(missing_ok=True)
        return self._holds

    def _linked(self, complete: Path) -> bool:
        """Give the lock file its name, unless another process has just done so: only one succeeds."""
        try:
            os.link(complete, self.file)
        except FileExistsError:
            return False
        return True

    def _taken_over(self, complete: Path) -> bool:
        """Replace the lock of a process that is gone, unless another process has just done so.

        The process that replaces the file holds a system lock on the very file that it replaces. So does a process that
        checks whether the file is still there.
        """
        with _system_lock(self.file) as is_current:
            if not is_current or self._stale() != "stale":
                return False
            os.replace(complete, self.file)
            return True

    def _stale(self) -> str:
        """Return "free", "own" or "stale"; refuse any other state.

        Raises:
            RunError: Another process holds the folder, or may hold it.
        """
        owner = _read(self.file)
        if owner is None:
            return "free"
        if isinstance(owner, str):
            raise RunError(
                f"The output folder {self.folder} has a lock file that cannot be read ({owner}). If no other command "
                f"writes there, remove {self.file}. Otherwise give another folder with --output."
            )
        if owner.is_this_process():
            return "own"
        if owner.is_gone():
            return "stale"
        text = f"The output folder {self.folder} is in use by process {owner.pid} on host {owner.host} since "
        text += f"{owner.date_utc} ({owner.command[:MOST_CHARACTERS]}). "
        if owner.can_be_checked():
            raise RunError(text + "Wait until it has ended, or give another folder with --output.")
        raise RunError(
            text + f"Whether it still runs cannot be seen from here ({socket.gethostname()}): if it does not, remove "
            f"{self.file}. Otherwise give another folder with --output."
        )


@contextmanager
def _system_lock(file: Path) -> Iterator[bool]:
    """Hold the system's lock of a file; yield whether the file is still the one of that name."""
    if os.name == "nt":
        yield True
        return
    import fcntl

    with file.open("rb+") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield os.path.samestat(os.fstat(opened.fileno()), file.stat())


def _read(file: Path) -> Owner | str | None:
    """Return the owner that a lock file names; None without a file, and an error's text where the file is no lock."""
    try:
        return Owner(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except (OSError, ValueError, TypeError) as error:
        return str(error) or type(error).__name__


def _identity(owner: Owner) -> tuple[str | int | None, ...]:
    return owner.host, owner.pid, owner.started, owner.boot, owner.namespace


def _runs(pid: int) -> bool:
    """Return whether a process of this number runs."""
    if Path("/proc/self/stat").exists():
        return _start_of(pid) is not None
    if os.name == "nt":  # there `os.kill` would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _start_of(pid: int) -> str | None:
    """Return when a process began; None where there is none, or it has ended, or the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return None if state in "ZX" else fields[18]


@cache
def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
