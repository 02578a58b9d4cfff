"""Facts about invented places, and a text for each that a rule writes: training data that need no download."""

import random
from collections.abc import Iterator, Mapping
from typing import Any

from hsdlab.data.base import Example, GenerationDataModule
from hsdlab.errors import UserError

SIZES = {"test": 500, "validation": 500, "train": 5_000}
"""Examples of each split. No source of one split is in another."""

_NAMES = [
    *("Abrano", "Belvero", "Brasko", "Calduna", "Corvino", "Delmara", "Drovan", "Elbrisa", "Fandoro"),
    *("Felucca", "Gandria", "Grivello", "Halmora", "Istran", "Jolanda", "Kestrel", "Korvella", "Lumeno"),
    *("Malbera", "Merivo", "Nandoro", "Norvila", "Oldara", "Orvesta", "Palmino", "Pevero", "Quandro"),
    *("Rivello", "Rostana", "Salvero", "Sendria", "Tavola", "Tremani", "Ulvara", "Valdino", "Verbena"),
    *("Wendrova", "Yaldara", "Zafrano", "Zendria"),
]
_FOODS = ["Italian", "Indian", "English", "Thai", "French", "Turkish", "Ethiopian", "Greek"]
_KINDS = ["restaurant", "pub", "bistro", "bar", "diner", "inn"]
_PRICES = {"low": "cheap", "medium": "affordable", "high": "expensive"}
_AREAS = {"river": "by the river", "centre": "in the centre", "hill": "on the hill", "market": "at the market"}
_RATINGS = {"1": "poor", "2": "fair", "3": "good", "4": "excellent"}
_SHARES = {"kind": 0.8, "food": 0.7, "price": 0.6, "area": 0.6, "rating": 0.6, "families": 0.6}
"""How often each fact is given. The name always is."""


class SyntheticTables(GenerationDataModule):
    """Tables of facts about invented places, with one text each: 5,000 to train, 500 to validate, 500 to test.

    A program draws the facts, and a rule makes the text of them, so a model can learn the task exactly. Some tokens are
    copied from the table, some follow from the token before, and some depend on several facts: "a" or "an", whether
    "and" or "but" joins two statements, and what the place is recommended for. The facts come in a random order. All
    examples are the same on every machine. Scores on them say nothing of real data.

    Args:
        **kwargs: See `GenerationDataModule`.

    Example::

        SyntheticTables().examples("test")[0].references
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def load_examples(self, split: str) -> list[Example]:
        """Make the examples of a split.

        Raises:
            UserError: There is no such split.
        """
        if split not in SIZES:
            raise UserError(f"No split {split!r}: expected one of {', '.join(SIZES)}")
        examples = _examples()
        for each, size in SIZES.items():  # one after the other, from the same draws
            made = [next(examples) for _ in range(size)]
            if each == split:
                break
        return [Example(f"{split}-{number}", *pair) for number, pair in enumerate(made)]


def _examples() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield sources with their texts, never one source twice."""
    draw = random.Random("synthetic tables, version 1")
    seen = set()
    while True:
        facts = _facts(draw)
        if frozenset(facts.items()) not in seen:
            seen.add(frozenset(facts.items()))
            order = draw.sample(list(facts), len(facts))
            yield ", ".join(f"{key} {facts[key]}" for key in order), (text_of(facts),)


def _facts(draw: random.Random) -> dict[str, str]:
    values = {
        "kind": draw.choice(_KINDS),
        "food": draw.choice(_FOODS),
        "price": draw.choice(list(_PRICES)),
        "area": draw.choice(list(_AREAS)),
        "rating": draw.choice(list(_RATINGS)),
        "families": draw.choice(["yes", "no"]),
    }
    given = {key: value for key, value in values.items() if draw.random() < _SHARES[key]}
    return {"name": draw.choice(_NAMES), **given}


def text_of(facts: Mapping[str, str]) -> str:
    """Write the text of a table.

    Args:
        facts: The values by their keys: "name", and any of "kind", "food", "price", "area", "rating" and "families".

    Returns:
        Two or three sentences.
    """
    words = [_PRICES[facts["price"]]] if "price" in facts else []
    words += [facts["food"]] if "food" in facts else []
    words.append(facts.get("kind", "place"))
    words.insert(0, "an" if words[0][0] in "aeiouAEIOU" else "a")
    words += [_AREAS[facts["area"]]] if "area" in facts else []
    return " ".join([f"{facts['name']} is {' '.join(words)}.", *_opinion(facts), f"{_purpose(facts)}."])


def _opinion(facts: Mapping[str, str]) -> list[str]:
    """Say what guests think and whether families are welcome, in one sentence if both are known."""
    parts, praises = [], []
    if "rating" in facts:
        parts.append(f"Guests call it {_RATINGS[facts['rating']]}")
        praises.append(facts["rating"] in "34")
    if "families" in facts:
        welcome = facts["families"] == "yes"
        parts.append("Families are welcome" if welcome else "Families are not welcome")
        praises.append(welcome)
    if len(parts) < 2:
        return [f"{part}." for part in parts]
    joint = "and" if praises[0] == praises[1] else "but"
    return [f"{parts[0]}, {joint} {parts[1][0].lower()}{parts[1][1:]}."]


def _purpose(facts: Mapping[str, str]) -> str:
    """Recommend the place for something, which depends on two or three facts."""
    if facts.get("rating") in ("1", "2"):
        return "Good enough for lunch" if facts.get("price") == "low" else "Better stay at home"
    if facts.get("families") == "yes":
        return "Try it for a wedding" if facts.get("price") == "high" else "Try it for a birthday"
    return "Try it after work" if facts.get("kind") in ("pub", "bar") else "Try it for dinner"
