"""Errors that the user can mend: the command line shows their message alone, all others with a traceback."""


class UserError(ValueError):
    """An input, an option or a file is not what it has to be; the message says what to do about it."""


class RunError(UserError, RuntimeError):
    """What was asked for is in order, and yet it could not be done: no network, say, or damaged results."""
