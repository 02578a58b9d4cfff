"""Decoding with skipped layers: torch and transformers only; knows no Lightning and no strategy by name."""

from hsdlab.decoding.compiled import Compilation
from hsdlab.decoding.decisions import Strategy
from hsdlab.decoding.families import UnsupportedModelError
from hsdlab.decoding.generate import AppliedRun, DecodeOutput, active_run, applied, generate
from hsdlab.decoding.replay import replay
from hsdlab.decoding.states import HindsightState, LayerState, StepState
from hsdlab.decoding.step_graphs import Warmup
from hsdlab.decoding.sub_layers import SubLayers
from hsdlab.decoding.timing import Timing
from hsdlab.decoding.trace import Trace

__all__ = [
    "AppliedRun",
    "Compilation",
    "DecodeOutput",
    "HindsightState",
    "LayerState",
    "StepState",
    "Strategy",
    "SubLayers",
    "Timing",
    "Trace",
    "UnsupportedModelError",
    "Warmup",
    "active_run",
    "applied",
    "generate",
    "replay",
]
