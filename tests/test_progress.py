"""A bar on a terminal, a line every so often in a file, with the time that is left."""

import io
import time

import pytest

from hsdlab.progress import Steps, duration, part


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """Keeps what is written to a terminal."""

    def isatty(self):
        return True


def test_the_line_says_what_is_done_and_how_long_the_rest_takes():
    clock, file = Clock(), io.StringIO()
    with Steps("Decoding", 8, "batches", stream=file, clock=clock, background=False) as steps:
        assert steps.line() == "Decoding: 0 of 8 batches (0 %), 0 s so far"
        clock.now += 20
        steps.advance(2)
        assert steps.line() == "Decoding: 2 of 8 batches (25 %), 20 s so far, 1 min 0 s left"
        steps.note = "loss 1.25"
        assert steps.line().endswith("1 min 0 s left, loss 1.25")
    assert file.getvalue() == ""  # less than 30 s


def test_what_was_done_before_does_not_make_the_rest_look_faster():
    clock = Clock()
    with Steps("Decoding", 10, stream=io.StringIO(), clock=clock, background=False) as steps:
        steps.skip(6)
        clock.now += 10
        steps.advance(2)
        assert steps.line() == "Decoding: 8 of 10 (80 %), 10 s so far, 10 s left"


def test_a_part_says_how_long_the_whole_takes():
    clock = Clock()
    with (
        part(1, 4, "strategy", since=clock.now - 60),
        Steps("Decoding", 2, stream=io.StringIO(), clock=clock, background=False) as steps,
    ):
        assert steps.line().endswith("strategy 2 of 4, 3 min 0 s left in all")
        clock.now += 30
        steps.advance()
        assert steps.line().endswith("30 s left, strategy 2 of 4, 2 min 30 s left in all")
    with Steps("Decoding", 2, stream=io.StringIO(), clock=clock, background=False) as steps:
        assert "strategy" not in steps.line()


def test_a_thread_writes_lines_into_a_file_however_long_a_step_takes():
    file = io.StringIO()
    with Steps("Decoding", 3, "texts", stream=file, every_s=0.05):
        time.sleep(0.4)  # one step
    lines = file.getvalue().splitlines()
    assert 3 <= len(lines) <= 8
    assert lines[0].startswith("Decoding: 0 of 3 texts (0 %), 0 s so far")
    time.sleep(0.1)
    assert len(file.getvalue().splitlines()) == len(lines)  # it has ended


def test_without_a_thread_advancing_writes_the_lines():
    clock, file = Clock(), io.StringIO()
    with Steps("Timing", 4, stream=file, clock=clock, background=False) as steps:
        for _ in range(4):
            clock.now += 20
            steps.advance()
    assert [line.partition(" (")[0] for line in file.getvalue().splitlines()] == ["Timing: 2 of 4", "Timing: 4 of 4"]


def test_on_a_terminal_something_moves_within_a_step():
    terminal = Terminal()
    with Steps("Decoding", 3, stream=terminal) as steps:
        time.sleep(0.15)
        first = len(terminal.getvalue())
        time.sleep(0.4)  # one step
        assert len(terminal.getvalue()) > first
        steps.advance()
        time.sleep(0.2)
    assert "Decoding: 0 of 3" in terminal.getvalue()
    assert "Decoding: 1 of 3" in terminal.getvalue()


def test_other_processes_are_quiet():
    for stream in (io.StringIO(), Terminal()):
        with Steps("Decoding", 1, stream=stream, quiet=True, every_s=0.01) as steps:
            time.sleep(0.05)
            steps.advance()
        assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (95, "1 min 35 s"), (3600, "1 h 0 min"), (7260, "2 h 1 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_counting_counts_each_item_when_the_next_is_asked_for():
    with Steps("Searching", 3, stream=io.StringIO(), background=False) as steps:
        assert [(item, steps.done) for item in steps.counting("abc")] == [("a", 0), ("b", 1), ("c", 2)]
        assert steps.done == 3
