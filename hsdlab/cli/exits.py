"""How a command ends: the one place that turns an error into a sentence."""

import signal
import sys
from collections.abc import Callable, Sequence

from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from hsdlab.cli.noise import without_noise
from hsdlab.cli.stops import Stopped, stopping_at_once
from hsdlab.cli.warnings_once import warnings_once
from hsdlab.errors import RunError, UserError

FOR_THE_USER = (UserError, OSError, MisconfigurationException)
"""Errors whose message says what to do: hsdlab's own, those of files and network, and of options of the Trainer."""

DEBUG = "--debug"


class Refused(SystemExit):
    """The options cannot be taken, and nothing was begun: exit code 2, as a misspelt option has.

    Args:
        message: Printed here, for the interpreter prints none beside a number.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 2
        sys.stderr.write(f"{message}\n")


class Finished(SystemExit):
    """There is nothing left to do: exit code 0.

    Args:
        message: Printed here.
    """

    def __init__(self, message: str) -> None:
        super().__init__(0)
        if rank_zero_only.rank == 0:
            sys.stdout.write(f"{message}\n")


def run_or_exit(command: Callable[[list[str] | None], object], args: Sequence[str] | None = None) -> None:
    """Run a command; end with one sentence where the user can correct the error, or where the command was stopped.

    Args:
        command: Takes the arguments; None for those of the process.
        args: The command line; by default that of the process. ``--debug`` in it shows the traceback of every error.

    Raises:
        Refused: With exit code 2, where an option's value is refused.
        SystemExit: With the sentence and exit code 1, for all that is wrong with files, data, models or the run itself.
            With 143 after SIGTERM and 130 after Ctrl-C, and the sentence that says how to resume.
        Exception: Any other error; with ``--debug`` every error.
    """
    given = list(sys.argv[1:] if args is None else args)
    words = [word for word in given if word != DEBUG]
    debug = words != given
    try:
        with stopping_at_once(), warnings_once(), without_noise():
            if args is None:  # LightningCLI warns of arguments beside those of the process
                sys.argv[1:] = words
                command(None)
            else:
                command(words)
    except (SystemExit, KeyboardInterrupt) as end:
        stopped = _stopped(end)
        if stopped is None:
            raise
        if rank_zero_only.rank == 0:
            sys.stderr.write(f"{stopped.sentence}\n")
        raise stopped from None
    except Exception as error:
        chain = (error, error.__cause__)  # jsonargparse wraps what the classes of an option refuse
        message = next((each for each in chain if isinstance(each, FOR_THE_USER)), None)
        if debug or message is None:
            raise
        if isinstance(message, UserError) and not isinstance(message, RunError):
            raise Refused(f"error: {message}") from None
        sys.exit(f"error: {_sentence(message)}")


def _sentence(error: Exception) -> str:
    """Return an error's message; an error number of the system's alone as what it means for the file."""
    if not isinstance(error, OSError) or error.filename is None or not str(error).startswith("[Errno"):
        return str(error)
    names = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{names}: {error.strerror}. Check that the path is right and that you may use it, or give another one."


def _stopped(end: BaseException) -> Stopped | None:
    """Tell what stopped a command; None where it ended by itself."""
    if isinstance(end, Stopped):
        return end
    if isinstance(end, SIGTERMException):  # between the start of a Trainer and that of its loop
        return Stopped(signal.SIGTERM)
    if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):  # Lightning's sys.exit(1)
        return Stopped(signal.SIGINT)
    return None
