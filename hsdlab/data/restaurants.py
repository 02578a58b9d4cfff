"""48 facts on invented restaurants in E2E's form, with two descriptions each: what the demo decodes."""

from pathlib import Path
from typing import Any

from hsdlab.data.base import Example, GenerationDataModule
from hsdlab.data.jsonl import read_examples
from hsdlab.errors import UserError

FILE = Path(__file__).with_name("restaurants.jsonl")


class Restaurants(GenerationDataModule):
    """48 examples of our own in the form of the E2E NLG Challenge, none of which E2E holds. No download.

    Names, facts and descriptions were written for hsdlab. The set is for a first look at a model that was fine-tuned on
    E2E: the intervals of its scores are wide, and scores on it cannot be compared with published ones.

    Args:
        **kwargs: See `GenerationDataModule`.

    Example::

        Restaurants().examples("test")[0].references
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def load_examples(self, split: str) -> list[Example]:
        """Return the 48 examples of the test split.

        Raises:
            UserError: Another split: there is none.
        """
        if split != "test":
            raise UserError(f"Restaurants has a test split only, got {split}: it is for a first look, not for training")
        return read_examples(FILE)
