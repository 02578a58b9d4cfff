"""Errors that the user can correct. The command line shows only their message, and any other error with a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An input, an option or a file is not what it has to be; the message says what to do about it."""


class RunError(UserError, RuntimeError):
    """The command is valid and could still not be carried out: no network, for example, or damaged results."""


@contextmanager
def faults_of_the_run() -> Iterator[None]:
    """Treat what the block refuses as an error of the run and not of an option: a file, the data or the model is wrong.

    Yields:
        Nothing.

    Raises:
        RunError: In place of any other UserError, with its message.
    """
    try:
        yield
    except RunError:
        raise
    except UserError as error:
        raise RunError(str(error)) from error
