"""From the results of several strategies to tables, JSON and a picture."""

from hsdlab.records.bootstrap import bootstrap_interval, paired_interval
from hsdlab.records.comparison import Comparison, StrategyResult
from hsdlab.records.provenance import run_provenance
from hsdlab.reporting.calibration import CalibrationReport
from hsdlab.reporting.pareto import pareto_figure
from hsdlab.reporting.tuning import TuningReport

__all__ = [
    "CalibrationReport",
    "Comparison",
    "StrategyResult",
    "TuningReport",
    "bootstrap_interval",
    "paired_interval",
    "pareto_figure",
    "run_provenance",
]
