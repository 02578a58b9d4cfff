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
    """A source with its references in a split; as yet without an id.

    Attributes:
        split: The split.
        source: What a model reads.
        references: What people wrote for it, at least one.
    """

    split: Split
    source: str
    references: tuple[str, ...]


def collapsed(text: str) -> str:
    """Collapse white space.

    Args:
        text: Any text.

    Returns:
        The text with each run of white space as one space, and none at its ends.
    """
    return " ".join(text.split())


def grouped(pairs: Iterable[tuple[str, str]]) -> Groups:
    """Collect the references of each source.

    Args:
        pairs: (source, reference); white space in them is collapsed, and those without text are left out.

    Returns:
        Source to its references, in the order of the first pair of each.
    """
    groups: Groups = {}
    for source, reference in ((collapsed(source), collapsed(reference)) for source, reference in pairs):
        if source and reference:
            groups.setdefault(source, []).append(reference)
    return groups


def as_pairs(split: Split, groups: Groups) -> Iterator[Pair]:
    """Make the pairs of a split.

    Args:
        split: The split.
        groups: Source to its references.

    Yields:
        Each source with its references. A reference that could not be decoded is left out, and so is a source without
        any.
    """
    for source, references in groups.items():
        kept = tuple(reference for reference in references if UNDECODABLE not in reference)
        if kept and UNDECODABLE not in source:
            yield Pair(split, source, kept)


def drawn(groups: Groups, number: int) -> Groups:
    """Draw sources: the first ones of all when shuffled with the seed 1234.

    Args:
        groups: Source to its references.
        number: How many.

    Returns:
        The drawn sources in their original order.
    """
    order = list(groups)
    random.Random(DRAW_SEED).shuffle(order)
    return _those(groups, set(order[:number]))


def held_back(groups: Groups, number: int) -> Groups:
    """Draw sources from the other end than `drawn`: the last ones of all when shuffled with the seed 1234.

    Args:
        groups: Source to its references.
        number: How many.

    Returns:
        The drawn sources in their original order.
    """
    order = list(groups)
    random.Random(DRAW_SEED).shuffle(order)
    return _those(groups, set(order[len(order) - number :]))


def each_once(groups: Groups, key: Callable[[str], object], taken: Collection[object] = ()) -> Groups:
    """Remove sources that are alike.

    Args:
        groups: Source to its references.
        key: What two sources that are alike have in common.
        taken: Keys of the other splits.

    Returns:
        The sources, in order, whose key no earlier one and no other split has.
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
