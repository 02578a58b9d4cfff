"""Measure decoding speed: interleaved rounds, medians with their spread, the prompt pass apart."""

from hsdlab.bench.decode import run_bench
from hsdlab.bench.timing import Spread, interleave, ratio_spread, spread

__all__ = ["Spread", "interleave", "ratio_spread", "run_bench", "spread"]
