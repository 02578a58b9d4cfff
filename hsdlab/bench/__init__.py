"""Measure decoding speed, interleaved and with its spread; and what each layer of a model is worth."""

from hsdlab.bench.decode import run_bench
from hsdlab.bench.inspection import inspect_layers, own_text
from hsdlab.bench.inspection_report import run_inspection
from hsdlab.bench.timing import Spread, interleave, ratio_spread, spread

__all__ = [
    "Spread",
    "inspect_layers",
    "interleave",
    "own_text",
    "ratio_spread",
    "run_bench",
    "run_inspection",
    "spread",
]
