"""What a search has computed of schedules, in a file, so that an interrupted run resumes with it."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from hsdlab.decoding.forced import LayerSchedule
from hsdlab.errors import RunError
from hsdlab.records.document import to_plain
from hsdlab.records.files import append_whole, replace_file
from hsdlab.records.lines import from_line, to_line

Value = TypeVar("Value")


class ScheduleFile(ABC, Generic[Value]):
    """Values by the key of a schedule, one JSON object a line.

    Args:
        path: The file. It is read if it exists; an incomplete last line is cut off. A missing folder is created when
            the first value is added.

    Raises:
        RunError: A line holds no such value, or was changed after it was written.
    """

    holds: ClassVar[str]
    """What a line holds, for messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Value] = {}
        if path.exists():
            *lines, cut_off = path.read_bytes().split(b"\n")
            for number, line in enumerate(lines, start=1):
                try:
                    key, value = self._read(from_line(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise RunError(
                        f"{path}, line {number}: expected {self.holds} as the run wrote it, got {line[:80]!r} "
                        f"({error}). Restore the file, or start the run over with --overwrite."
                    ) from error
                self._values[key] = value
            if cut_off:
                replace_file(path, b"".join(line + b"\n" for line in lines))

    @abstractmethod
    def _read(self, content: Mapping[str, Any]) -> tuple[str, Value]:
        """Return the key and the value of a line."""

    def _add(self, key: str, value: Value, content: Mapping[str, Any]) -> None:
        """Append a line."""
        self._values[key] = value
        append_whole(self.path, to_line(to_plain(content)))


def schedule_key(schedule: LayerSchedule) -> str:
    """Name a schedule in a file.

    Args:
        schedule: Of `layer_schedule`.

    Returns:
        16 hex digits, which tell schedules of one shape apart.
    """
    return hashlib.sha256(schedule.content).hexdigest()[:16]
