"""The command line: `hsdlab`, `evaluate.py` and `train.py`.

The names are imported when first used: `commands` answers `--help` before Lightning is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsdlab.cli.evaluate import EvaluateCLI, main

__all__ = ["EvaluateCLI", "main"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("hsdlab.cli.evaluate"), name)
