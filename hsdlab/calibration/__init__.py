"""Learn then Test: which setting of a strategy keeps the loss within a tolerance, with a guarantee."""

from hsdlab.calibration.bounds import BOUNDS as BOUNDS
from hsdlab.calibration.bounds import BoundName as BoundName
from hsdlab.calibration.bounds import risk_upper_bound as risk_upper_bound
from hsdlab.calibration.bounds import smallest_sample as smallest_sample
from hsdlab.calibration.fixed_sequence import Calibration as Calibration
from hsdlab.calibration.fixed_sequence import SettingTest as SettingTest
from hsdlab.calibration.fixed_sequence import fixed_sequence_test as fixed_sequence_test
