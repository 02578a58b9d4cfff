"""Progress of long work: a moving bar on a terminal; lines with the time left where the output is a file."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 30.0
"""Seconds between two lines where the output is not a terminal."""

Clock = Callable[[], float]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """One part of the whole work, such as one strategy of a comparison.

    Attributes:
        done: Number of parts before this one.
        total: Number of parts.
        name: What a part is, such as "strategy".
        since: When the first part began, seconds on the clock of `time.monotonic`.
    """

    done: int
    total: int
    name: str
    since: float

    def text(self, share: float, now: float) -> str:
        """Say which part is in progress, and estimate how long the remaining ones take at the same speed.

        Args:
            share: How much of this part is done, from 0 to 1.
            now: Seconds on the clock of `since`.

        Returns:
            "strategy 2 of 5, 3 min 20 s left in all"; without the time where nothing is done yet, or there is one part.
        """
        done = self.done + share
        text = f"{self.name} {self.done + 1} of {self.total}"
        if done <= 0 or self.total == 1:
            return text
        return f"{text}, {duration((now - self.since) * (self.total - done) / done)} left in all"


_PART: ContextVar[Part | None] = ContextVar("_PART", default=None)


@contextmanager
def part(done: int, total: int, name: str, since: float) -> Iterator[None]:
    """Let each `Steps` that begins inside the block show to which part it belongs, and the time left for all parts.

    Args:
        done: Number of parts before this one.
        total: Number of parts.
        name: What a part is, such as "strategy".
        since: When the first part began, seconds of `time.monotonic`.

    Yields:
        Nothing.
    """
    token = _PART.set(Part(done, total, name, since))
    try:
        yield
    finally:
        _PART.reset(token)


class Steps:
    """Shows how many steps of a long piece of work are done, within a ``with`` block.

    On a terminal a bar with a spinner moves ten times a second, however long a step takes. Elsewhere a thread writes a
    line every 30 seconds: the work, the steps done, the time taken and the time left.

    Args:
        what: The work, the first word of the line, such as "Decoding".
        total: Number of steps; 0 where it is not known.
        unit: What is counted, in the plural: "examples".
        quiet: Show nothing, as in all processes but the first.
        stream: Where to write; None for standard output.
        every_s: Seconds between two lines.
        clock: Returns the present time, seconds.
        background: Whether a thread refreshes the bar or writes the lines. If not, only `advance` does, so that no
            thread competes with what is measured.

    Attributes:
        done: Number of steps done.
        note: Text at the end of the line, such as the loss; empty at first.

    Example::

        with Steps("Scoring", total=len(texts), unit="texts") as steps:
            for text in texts:
                score(text)
                steps.advance()
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str = "",
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        every_s: float = LINE_EVERY_S,
        clock: Clock = time.monotonic,
        background: bool = True,
    ) -> None:
        self.what, self.total, self.unit, self.quiet = what, total, unit, quiet
        self.stream = sys.stdout if stream is None else stream
        self.every_s, self.clock, self.background = every_s, clock, background
        self.done = 0
        self.note = ""
        self._part = _PART.get()
        self._bar: tuple[Progress, TaskID] | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Steps":
        self._start = self._last_line = self.clock()
        self._done_at_start = self.done
        if self.quiet:
            return self
        if self.stream.isatty():
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30), TimeElapsedColumn())
            bar = Progress(
                *columns,
                TextColumn("{task.fields[left]}"),
                console=Console(file=self.stream),
                transient=True,
                auto_refresh=self.background,
            )
            bar.start()
            self._bar = bar, bar.add_task(self._counted(), total=self.total, left="")
        elif self.background:
            self._thread = threading.Thread(target=self._write_lines, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar[0].stop()
        if self._thread is not None:
            self._thread.join()

    def advance(self, steps: int = 1) -> None:
        """Count steps as done, and refresh what is shown.

        Args:
            steps: Number of steps since the last call.
        """
        self.done += steps
        if self._bar is not None:
            bar, task = self._bar
            left = ", ".join(text for text in (self._left(), self._of_whole(), self.note) if text)
            bar.update(task, description=self._counted(), completed=self.done, left=left, refresh=not self.background)
        elif not self.quiet and not self.background and self.clock() - self._last_line >= self.every_s:
            self._last_line = self.clock()
            self.write_line()

    def skip(self, steps: int) -> None:
        """Count steps that were done before, in a run that is resumed. The estimate of the time left ignores them.

        Args:
            steps: Number of such steps.
        """
        self._done_at_start += steps
        self.advance(steps)

    def counting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Count items as a loop goes through them.

        Args:
            items: One item per step.

        Yields:
            The same items. Each is counted as done when the loop asks for the next.
        """
        for item in items:
            yield item
            self.advance()

    def line(self) -> str:
        """Write down the progress as it is now.

        Returns:
            The line without a newline, such as "Scoring: 10 of 40 texts (25 %), 1 min 0 s so far, 3 min 0 s left".
        """
        taken = duration(self.clock() - self._start)
        share = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
        texts = [f"{self._counted()}{share}", f"{taken} so far", self._left(), self._of_whole(), self.note]
        return ", ".join(text for text in texts if text)

    def write_line(self) -> None:
        """Write `line` to the stream."""
        self.stream.write(f"{self.line()}\n")
        self.stream.flush()

    def _write_lines(self) -> None:
        while not self._ended.wait(self.every_s):
            self.write_line()

    def _counted(self) -> str:
        of_total = f" of {self.total}" if self.total else ""
        return f"{self.what}: {self.done}{of_total} {self.unit}".rstrip()

    def _left(self) -> str:
        new = self.done - self._done_at_start
        if new <= 0 or self.total <= self.done:
            return ""
        return f"{duration((self.clock() - self._start) * (self.total - self.done) / new)} left"

    def _of_whole(self) -> str:
        share = self.done / self.total if self.total else 0.0
        return "" if self._part is None else self._part.text(share, self.clock())


def duration(seconds: float) -> str:
    """Write a time span for people.

    Args:
        seconds: 0 or more.

    Returns:
        Seconds below a minute, minutes and seconds below an hour, else hours and minutes.

    Example:
        >>> duration(8.4), duration(95), duration(7260)
        ('8 s', '1 min 35 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
