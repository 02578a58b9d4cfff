"""Runs: what each command does, one file a command, as a function that returns a record.

Each takes a Trainer, a module that holds the model, the data, and the folder in which to write.
"""

from hsdlab.runs.bench import bench
from hsdlab.runs.calibrate import calibrate
from hsdlab.runs.compare import compare
from hsdlab.runs.count_tokens import count_tokens
from hsdlab.runs.draft_options import DraftTuningOptions
from hsdlab.runs.inspect import inspect
from hsdlab.runs.report import report
from hsdlab.runs.test import test
from hsdlab.runs.tune import TuningOptions, tune
from hsdlab.runs.tune_drafts import tune_drafts

__all__ = [
    "DraftTuningOptions",
    "TuningOptions",
    "bench",
    "calibrate",
    "compare",
    "count_tokens",
    "inspect",
    "report",
    "test",
    "tune",
    "tune_drafts",
]
