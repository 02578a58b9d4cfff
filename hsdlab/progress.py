"""How far long work has come: a bar that moves on a terminal, a line with the time left where the output is a file."""

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
"""Seconds between two lines where the output is no terminal."""

Clock = Callable[[], float]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """The part that progress is shown of: one strategy of a comparison, say.

    Attributes:
        done: How many parts came before.
        total: How many there are.
        name: What one is: "strategy".
        since: When the first began, on the clock of `time.monotonic`.
    """

    done: int
    total: int
    name: str
    since: float

    def text(self, share: float, now: float) -> str:
        """Say which part is under way, and how long all take that are left, if they take as long as those before.

        Args:
            share: How much of this part is done, from 0 to 1.
            now: On the clock of `since`.
        """
        done = self.done + share
        text = f"{self.name} {self.done + 1} of {self.total}"
        if done <= 0 or self.total == 1:
            return text
        return f"{text}, {duration((now - self.since) * (self.total - done) / done)} left in all"


_PART: ContextVar[Part | None] = ContextVar("_PART", default=None)


@contextmanager
def part(done: int, total: int, name: str, since: float) -> Iterator[None]:
    """Within this, each `Steps` also says of which part it is, and how long the whole still takes.

    Args:
        done: How many parts came before.
        total: How many there are.
        name: What one is: "strategy".
        since: When the first began, as `time.monotonic` told it.
    """
    token = _PART.set(Part(done, total, name, since))
    try:
        yield
    finally:
        _PART.reset(token)


class Steps:
    """Shows how many of the steps of a long piece of work are done, within a ``with`` block.

    On a terminal a bar with a spinner moves ten times a second, however long a step takes. Elsewhere a line is written
    every 30 seconds by a thread of its own: what, how many, how long it has taken, how long it still takes.

    Args:
        what: The work, as the line begins: "Decoding".
        total: How many steps there are.
        unit: What is counted, in the plural: "examples".
        quiet: Show nothing: in the other processes of several.
        stream: Where to write; standard output by default.
        every_s: Seconds between two lines.
        clock: Gives seconds.
        background: Whether a thread refreshes the bar or writes the lines; else only `advance` does, so that no thread
            competes with what is measured.

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
        self.note = ""  # what else is to be seen of the work: its loss, say
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
        """Count steps as done."""
        self.done += steps
        if self._bar is not None:
            bar, task = self._bar
            left = ", ".join(text for text in (self._left(), self._of_whole(), self.note) if text)
            bar.update(task, description=self._counted(), completed=self.done, left=left, refresh=not self.background)
        elif not self.quiet and not self.background and self.clock() - self._last_line >= self.every_s:
            self._last_line = self.clock()
            self.write_line()

    def skip(self, steps: int) -> None:
        """Count steps that were done before; they do not make the others look faster."""
        self._done_at_start += steps
        self.advance(steps)

    def counting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, each counted when the next is asked for."""
        for item in items:
            yield item
            self.advance()

    def line(self) -> str:
        """Return the line for a file."""
        taken = duration(self.clock() - self._start)
        share = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
        texts = [f"{self._counted()}{share}", f"{taken} so far", self._left(), self._of_whole(), self.note]
        return ", ".join(text for text in texts if text)

    def write_line(self) -> None:
        """Write the line."""
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
    """Return a time span for people.

    >>> duration(8.4), duration(95), duration(7260)
    ('8 s', '1 min 35 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
