"""Sources with their references, as they are read, put together, left out and drawn."""

import random
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Literal, NamedTuple

Split = Literal["train", "validation", "test"]
Groups = dict[str, list[str]]
"""Source -> its references, in the order of the official file."""

DRAW_SEED = 1234
UNDECODABLE = "�"


class Pair(NamedTuple):
    """A source with its references in a split; as yet without an id."""

    split: Split
    source: str
    references: tuple[str, ...]


def collapsed(text: str) -> str:
    """Return a text with each run of white space as one space, and none at its ends."""
    return " ".join(text.split())


def grouped(pairs: Iterable[tuple[str, str]]) -> Groups:
    """Take the references of one source together.

    Args:
        pairs: (source, reference); white space in them is collapsed, and those without text are left out.
    """
    groups: Groups = {}
    for source, reference in ((collapsed(source), collapsed(reference)) for source, reference in pairs):
        if source and reference:
            groups.setdefault(source, []).append(reference)
    return groups


def as_pairs(split: Split, groups: Groups) -> Iterator[Pair]:
    """Yield the sources of a split with their references; an undecodable reference is left out."""
    for source, references in groups.items():
        kept = tuple(reference for reference in references if UNDECODABLE not in reference)
        if kept and UNDECODABLE not in source:
            yield Pair(split, source, kept)


def drawn(groups: Groups, number: int) -> Groups:
    """Return some of the sources in their order: the first of all when shuffled with the seed 1234."""
    order = list(groups)
    random.Random(DRAW_SEED).shuffle(order)
    return _those(groups, set(order[:number]))


def held_back(groups: Groups, number: int) -> Groups:
    """Return some of the sources in their order: the last of all when shuffled with the seed 1234."""
    order = list(groups)
    random.Random(DRAW_SEED).shuffle(order)
    return _those(groups, set(order[len(order) - number :]))


def each_once(groups: Groups, key: Callable[[str], object], taken: Collection[object] = ()) -> Groups:
    """Return the sources whose key neither an earlier one has nor another split.

    Args:
        groups: The sources.
        key: What two sources that are alike have in common.
        taken: Keys of the other splits.
    """
    seen = set(taken)
    kept: Groups = {}
    for source, references in groups.items():
        if key(source) not in seen:
            seen.add(key(source))
            kept[source] = references
    return kept


def _those(groups: Groups, names: Collection[str]) -> Groups:
    return {source: references for source, references in groups.items() if source in names}
