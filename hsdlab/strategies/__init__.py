"""Strategies: which layers run for which token. One file a strategy, one paper a file."""

from hsdlab.strategies.base import SkipStrategy
from hsdlab.strategies.calm import CALM
from hsdlab.strategies.compose import Compose
from hsdlab.strategies.confidence import ConfidenceStrategy
from hsdlab.strategies.deebert import DeeBERT
from hsdlab.strategies.full_depth import FullDepth
from hsdlab.strategies.hsd import HSD
from hsdlab.strategies.learned_exit import LearnedExit
from hsdlab.strategies.oracle_exit import OracleExit
from hsdlab.strategies.pabee import PABEE
from hsdlab.strategies.schedule import ScheduledStrategy
from hsdlab.strategies.skipdecode import SkipDecode
from hsdlab.strategies.static import StaticDepth
from hsdlab.strategies.sub_layers import SubLayerStrategy
from hsdlab.strategies.verified import Verified

__all__ = [
    "CALM",
    "HSD",
    "PABEE",
    "Compose",
    "ConfidenceStrategy",
    "DeeBERT",
    "FullDepth",
    "LearnedExit",
    "OracleExit",
    "ScheduledStrategy",
    "SkipDecode",
    "SkipStrategy",
    "StaticDepth",
    "SubLayerStrategy",
    "Verified",
]
