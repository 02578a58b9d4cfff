"""The command line: `evaluate.py` and `train.py`."""

from hsdlab.cli.evaluate import EvaluateCLI, main

__all__ = ["EvaluateCLI", "main"]
