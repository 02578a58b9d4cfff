"""Errors that the user can mend: the command line shows their message alone, all others with a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An input, an option or a file is not what it has to be; the message says what to do about it."""


class RunError(UserError, RuntimeError):
    """What was asked for is in order, and yet it could not be done: no network, say, or damaged results."""


@contextmanager
def faults_of_the_run() -> Iterator[None]:
    """Within this, what is refused is no option's value: a file, the data or the model is not as it has to be.

    Raises:
        RunError: In place of any other UserError, with its message.
    """
    try:
        yield
    except RunError:
        raise
    except UserError as error:
        raise RunError(str(error)) from error
