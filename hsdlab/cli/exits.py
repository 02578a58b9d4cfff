"""How a command ends: the one place that turns an error into a sentence."""

import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from hsdlab.errors import UserError

FOR_THE_USER = (UserError, OSError, MisconfigurationException)
"""Errors whose message says what to do: hsdlab's own, those of files and network, and of options of the Trainer."""

DEBUG = "--debug"


def run_or_exit(
    command: Callable[[list[str] | None], object],
    args: Sequence[str] | None = None,
    goes_on: str = "The same command goes on with what has finished.",
) -> None:
    """Run a command; end with one sentence where the error is the user's to mend, or where it was stopped.

    Args:
        command: Takes the arguments; None for those of the process.
        args: The command line; by default that of the process. ``--debug`` in it shows the traceback of every error.
        goes_on: What to do after a run was stopped.

    Raises:
        SystemExit: With the sentence, for an error that is the user's to mend. With 143 after SIGTERM and 130 after
            SIGINT, as shells and schedulers expect: Lightning ends with 0 and 1.
        Exception: Any other error; with ``--debug`` every error.
    """
    given = list(sys.argv[1:] if args is None else args)
    words = [word for word in given if word != DEBUG]
    debug = words != given
    try:
        if args is None:  # LightningCLI warns of arguments beside those of the process
            sys.argv[1:] = words
            command(None)
        else:
            command(words)
    except SystemExit as end:
        if isinstance(end, SIGTERMException):
            _stopped(f"Stopped by SIGTERM. {goes_on}", 128 + signal.SIGTERM)
        if isinstance(end.__context__, KeyboardInterrupt):
            _stopped(f"Stopped by Ctrl-C. {goes_on}", 128 + signal.SIGINT)
        raise
    except KeyboardInterrupt:
        _stopped(f"Stopped by Ctrl-C. {goes_on}", 128 + signal.SIGINT)
    except Exception as error:
        chain = (error, error.__cause__)  # jsonargparse wraps what the classes of an option refuse
        message = next((each for each in chain if isinstance(each, FOR_THE_USER)), None)
        if debug or message is None:
            raise
        sys.exit(f"error: {message}")


def _stopped(sentence: str, code: int) -> NoReturn:
    sys.stderr.write(f"{sentence}\n")
    sys.exit(code)
