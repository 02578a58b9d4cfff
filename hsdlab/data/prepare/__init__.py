"""The papers' data sets out of their official files: fetched by address and SHA-256, written as JSON Lines."""

from hsdlab.data.prepare.command import main
from hsdlab.data.prepare.official import OFFICIAL_SETS, OfficialFile, OfficialSet
from hsdlab.data.prepare.write import Prepared, prepare

__all__ = ["OFFICIAL_SETS", "OfficialFile", "OfficialSet", "Prepared", "main", "prepare"]
