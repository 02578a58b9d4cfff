"""Decode a data set with skipped layers, and compare the strategies: see `python evaluate.py --help`."""

from hsdlab.cli.commands import evaluate

if __name__ == "__main__":
    evaluate()
