"""A warning is said once, in one line; at the end stands how often it was given."""

import logging
import sys
import warnings

import pytest

from hsdlab.cli.warnings_once import warnings_once


def warn(text):
    warnings.warn(text, UserWarning, stacklevel=1)


def test_a_warning_that_comes_again_is_counted(capsys, monkeypatch):
    def show(given):  # as Python does where nobody records
        sys.stderr.write(warnings.formatwarning(given.message, given.category, given.filename, given.lineno))

    monkeypatch.setattr(warnings, "_showwarnmsg_impl", show)
    with warnings.catch_warnings():
        warnings.resetwarnings()
        with warnings_once():
            for _ in range(3):
                warn("2 of 8 test prompts were cut to 100 tokens")
            warn("another")
    assert capsys.readouterr().err == (
        "Warning: 2 of 8 test prompts were cut to 100 tokens\n"
        "Warning: another\n"
        "This warning was given 3 times: 2 of 8 test prompts were cut to 100 tokens\n"
    )


def test_what_libraries_log_is_counted_too(capsys):
    logger = logging.getLogger("transformers.generation.utils")
    root = logging.getLogger("transformers")
    heard = []

    class Heard(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())

    handler = Heard()
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.WARNING)
    try:
        with warnings_once():
            logger.warning("odd %s", 1)
            logger.warning("odd %s", 1)
            logger.warning("odd %s", 2)
        logger.warning("odd %s", 1)  # afterwards as before
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert heard == ["odd 1", "odd 2", "odd 1"]
    assert capsys.readouterr().err.count("This warning was given 2 times: odd 1\n") == 1


def test_who_records_warnings_gets_the_first_of_each():
    with warnings_once(), pytest.warns(UserWarning, match="seen") as seen:
        warn("seen")
    assert len(seen) == 1


def test_an_error_leaves_warnings_as_they_were():
    before = warnings.showwarning, warnings.formatwarning, list(warnings.filters)
    with pytest.raises(ZeroDivisionError), warnings_once():
        raise ZeroDivisionError
    assert (warnings.showwarning, warnings.formatwarning, list(warnings.filters)) == before
