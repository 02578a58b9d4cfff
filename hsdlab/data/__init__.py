"""Data sets: Lightning data modules that turn text into prompts with references."""

from hsdlab.data.base import Example, GenerationDataModule
from hsdlab.data.docstrings import Docstrings
from hsdlab.data.folder import DataFolder
from hsdlab.data.hub import HubDataset
from hsdlab.data.jsonl import JSONLines
from hsdlab.data.prompt import PromptTemplate
from hsdlab.data.restaurants import Restaurants
from hsdlab.data.synthetic_tables import SyntheticTables

__all__ = [
    "DataFolder",
    "Docstrings",
    "Example",
    "GenerationDataModule",
    "HubDataset",
    "JSONLines",
    "PromptTemplate",
    "Restaurants",
    "SyntheticTables",
]
