"""How a command ends: the one place that turns an error into a sentence."""

import sys
from collections.abc import Callable, Sequence

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from hsdlab.errors import UserError

FOR_THE_USER = (UserError, OSError, MisconfigurationException)
"""Errors whose message says what to do: hsdlab's own, those of files and network, and of options of the Trainer."""

DEBUG = "--debug"


def run_or_exit(command: Callable[[list[str]], object], args: Sequence[str] | None = None) -> None:
    """Run a command; end with one sentence where the error is the user's to mend.

    Args:
        command: Takes the arguments.
        args: The command line; by default that of the process. ``--debug`` in it shows the traceback of every error.

    Raises:
        SystemExit: With the sentence, for an error that is the user's to mend.
        Exception: Any other error; with ``--debug`` every error.
    """
    args = list(sys.argv[1:] if args is None else args)
    debug = DEBUG in args
    try:
        command([arg for arg in args if arg != DEBUG])
    except Exception as error:
        chain = (error, error.__cause__)  # jsonargparse wraps what the classes of an option refuse
        message = next((each for each in chain if isinstance(each, FOR_THE_USER)), None)
        if debug or message is None:
            raise
        sys.exit(f"error: {message}")
