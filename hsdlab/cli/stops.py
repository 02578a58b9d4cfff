"""SIGTERM and Ctrl-C end a command at once, in all its processes, with the exit code that shells and schedulers expect.

Lightning ends with 0 after SIGTERM, so that `&&` and SLURM see a success, and waits for the end of a batch in a
collective operation that hangs where the processes are not at the same place. What a run has written survives being
killed at any moment, so that nothing has to be waited for.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from lightning.pytorch import Callback, Trainer

GRACE_S = 15.0
"""For so long may what is left to do, such as printing the table of what has finished, take; SLURM kills after 30 s."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
WITHOUT_RESULT = "There is nothing to resume: the same command starts over."


class Stopped(SystemExit):
    """The command was stopped by a signal: exit code 128 plus its number.

    Args:
        number: Of the signal, such as `signal.SIGTERM`.

    Attributes:
        signal: Which one.
        goes_on: A sentence on how to resume the command, or that there is nothing to resume.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.goes_on = WITHOUT_RESULT

    @property
    def sentence(self) -> str:
        """What stopped the command, and how to go on."""
        return f"Stopped by {NAMES[self.signal]}. {self.goes_on}"


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Have SIGTERM and Ctrl-C raise `Stopped` within a block, in the main thread of this process only.

    Yields:
        Nothing. The handlers from before are restored at the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop = _Stop()
    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        yield
    finally:
        stop.end()
        for number, handler in before.items():
            signal.signal(number, handler)


class StopsAtOnce(Callback):
    """Keeps the handler of `stopping_at_once` where a Trainer puts its own; has it stop the Trainer's processes too."""

    def _keep(self, trainer: Trainer, *_: Any) -> None:
        stop = signal.getsignal(signal.SIGINT)  # Lightning leaves this one
        if isinstance(stop, _Stop):
            stop.processes = getattr(trainer.strategy.launcher, "procs", [])
            signal.signal(signal.SIGTERM, stop)

    on_sanity_check_start = on_train_start = _keep
    on_validation_start = on_test_start = on_predict_start = _keep


class _Stop:
    """Handles the first signal; further ones do not disturb the end."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[Any]] = []  # Lightning's own list, which its observer reads too
        self._stopped: list[subprocess.Popen[Any]] = []
        self._pid = os.getpid()
        self._timer: threading.Timer | None = None

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        if os.getpid() != self._pid:  # a process that was forked, of a data loader, say
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        self._timer = threading.Timer(GRACE_S, os._exit, [128 + number])
        self._timer.daemon = True
        self._timer.start()
        self._stopped = list(self.processes)
        self.processes.clear()  # the observer would kill this process too once another one has ended
        for process in self._stopped:
            process.send_signal(signal.SIGTERM)
        raise Stopped(number)

    def end(self) -> None:
        """Wait for the processes that were stopped; the timer sees to it that this ends."""
        for process in self._stopped:
            try:
                process.wait(timeout=GRACE_S / 2)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._timer is not None:
            self._timer.cancel()
