"""Search the settings of scheduled strategies by replay on full depth's texts; choose which of them to decode."""

from hsdlab.tuning.agreement import AgreementFile, ReplayAgreement
from hsdlab.tuning.drafts import Draft, drafts_to_measure, predict, search_drafts
from hsdlab.tuning.goal import Goal
from hsdlab.tuning.proposals import check_optuna
from hsdlab.tuning.score import ReplayScore, ScoreFile
from hsdlab.tuning.search import Setting, search

__all__ = [
    "AgreementFile",
    "Draft",
    "Goal",
    "ReplayAgreement",
    "ReplayScore",
    "ScoreFile",
    "Setting",
    "check_optuna",
    "drafts_to_measure",
    "predict",
    "search",
    "search_drafts",
]
