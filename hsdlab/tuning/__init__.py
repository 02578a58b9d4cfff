"""Search the settings of scheduled strategies by cost and a teacher-forced score; choose which of them to decode."""

from hsdlab.tuning.goal import Goal
from hsdlab.tuning.score import ReplayScore, ScoreFile
from hsdlab.tuning.search import Setting, check_optuna, search

__all__ = ["Goal", "ReplayScore", "ScoreFile", "Setting", "check_optuna", "search"]
