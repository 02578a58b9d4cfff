"""Each warning once, in one line, and at the end how often it was given."""

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

LOGGERS = ("transformers", "lightning.pytorch", "lightning.fabric")
"""Libraries that warn by logging."""


class _Once(logging.Filter):
    """Lets each warning of a logger's handlers pass once, and counts them."""

    def __init__(self, said: Counter[str]) -> None:
        super().__init__()
        self.said = said

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        first: bool | None = getattr(record, "is_the_first", None)
        if first is None:  # no other handler has seen this record
            text = record.getMessage()
            self.said[text] += 1
            first = record.is_the_first = self.said[text] == 1
        return first


@contextmanager
def warnings_once() -> Iterator[None]:
    """Show each warning within a block once; at the end print how often those that were repeated were given.

    A warning keeps its way: where Python or a test collects warnings, the first of each arrives there.

    Yields:
        Nothing.
    """
    said: Counter[str] = Counter()

    def once(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        said[str(message)] += 1
        if said[str(message)] == 1:
            shown = warnings._showwarnmsg_impl  # type: ignore[attr-defined]
            shown(warnings.WarningMessage(message, category, filename, lineno))

    form = warnings.formatwarning
    handlers = [handler for name in LOGGERS for handler in logging.getLogger(name).handlers]
    counts = _Once(said)
    with warnings.catch_warnings():
        warnings.showwarning, warnings.formatwarning = once, _one_line
        warnings.simplefilter("always", UserWarning, append=True)  # which Python would drop before they are counted
        for handler in handlers:
            handler.addFilter(counts)
        try:
            yield
        finally:
            warnings.formatwarning = form  # catch_warnings takes back the rest
            for handler in handlers:
                handler.removeFilter(counts)
            for text, times in said.items():
                if times > 1:
                    sys.stderr.write(f"This warning was given {times} times: {' '.join(text.split())[:200]}\n")


def _one_line(message: Any, category: type[Warning], *_: Any, **__: Any) -> str:
    kind = "Warning" if issubclass(category, UserWarning) else category.__name__
    return f"{kind}: {message}\n"
