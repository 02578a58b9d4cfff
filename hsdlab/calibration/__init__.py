"""Learn then Test: which setting of a strategy keeps the loss within a tolerance, with a guarantee."""

from hsdlab.calibration.bounds import BOUNDS, BoundName, risk_upper_bound, smallest_sample
from hsdlab.calibration.fixed_sequence import (
    Calibration,
    SettingTest,
    check_levels,
    fixed_sequence,
    fixed_sequence_test,
)
from hsdlab.calibration.losses import LossName, bounded, exact_match, risk_losses, textual_losses

__all__ = [
    "BOUNDS",
    "BoundName",
    "Calibration",
    "LossName",
    "SettingTest",
    "bounded",
    "check_levels",
    "exact_match",
    "fixed_sequence",
    "fixed_sequence_test",
    "risk_losses",
    "risk_upper_bound",
    "smallest_sample",
    "textual_losses",
]
