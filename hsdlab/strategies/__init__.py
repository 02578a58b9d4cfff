"""Strategies: which layers run for which token. One file a strategy, one paper a file."""

from hsdlab.strategies.base import SkipStrategy
from hsdlab.strategies.calm import CALM
from hsdlab.strategies.confidence import ConfidenceStrategy
from hsdlab.strategies.full_depth import FullDepth
from hsdlab.strategies.hsd import HSD
from hsdlab.strategies.schedule import ScheduledStrategy
from hsdlab.strategies.skipdecode import SkipDecode
from hsdlab.strategies.static import StaticDepth

__all__ = [
    "CALM",
    "HSD",
    "ConfidenceStrategy",
    "FullDepth",
    "ScheduledStrategy",
    "SkipDecode",
    "SkipStrategy",
    "StaticDepth",
]
