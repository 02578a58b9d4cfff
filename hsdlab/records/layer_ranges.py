"""Sets of layers as short text, "0,2,4,15-29": how a prediction file notes the executed layers of a decode step."""

from collections.abc import Iterable
from itertools import groupby


def layer_ranges(layers: Iterable[int]) -> str:
    """Write a set of layers as short text.

    Args:
        layers: Indices in any order, each once.

    Returns:
        Ascending indices, consecutive ones as a range; empty for no layer.

    Example:
        >>> layer_ranges([0, 2, 4, 15, 16, 17])
        '0,2,4,15-17'
    """
    runs = []
    for _, group in groupby(enumerate(sorted(layers)), key=lambda pair: pair[1] - pair[0]):
        run = [layer for _, layer in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(runs)


def layers_in(ranges: str) -> list[int]:
    """Read what `layer_ranges` wrote.

    Args:
        ranges: Such as "0,2,4,15-17"; empty for no layer.

    Returns:
        The indices, ascending.

    Example:
        >>> layers_in("0,2,4,15-17")
        [0, 2, 4, 15, 16, 17]
    """
    bounds = [part.split("-") for part in ranges.split(",") if part]
    return [layer for bound in bounds for layer in range(int(bound[0]), int(bound[-1]) + 1)]
