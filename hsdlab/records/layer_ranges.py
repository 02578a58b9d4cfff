"""Sets of layers as short text, "0,2,4,15-29": how a prediction file notes the executed layers of a decode step.

"7a" is a layer of which only attention ran, "7m" one of which only the MLP ran.
"""

from collections.abc import Iterable
from itertools import groupby


def layer_ranges(layers: Iterable[int], attention_only: Iterable[int] = (), mlp_only: Iterable[int] = ()) -> str:
    """Write a set of layers as short text.

    Args:
        layers: Indices in any order, each once.
        attention_only: Likewise, of layers of which only attention ran.
        mlp_only: Likewise, of layers of which only the MLP ran.

    Returns:
        Ascending indices, consecutive ones as a range; empty for no layer.

    Example:
        >>> layer_ranges([0, 2, 4, 15, 16, 17])
        '0,2,4,15-17'
        >>> layer_ranges([0, 1, 5], attention_only=[4], mlp_only=[2, 3])
        '0-1,2-3m,4a,5'
    """
    kinds = dict.fromkeys(layers, "") | dict.fromkeys(attention_only, "a") | dict.fromkeys(mlp_only, "m")
    runs = []
    for (_, kind), group in groupby(enumerate(sorted(kinds)), key=lambda pair: (pair[1] - pair[0], kinds[pair[1]])):
        run = [layer for _, layer in group]
        runs.append(f"{run[0]}{kind}" if len(run) == 1 else f"{run[0]}-{run[-1]}{kind}")
    return ",".join(runs)


def layers_in(ranges: str) -> dict[int, float]:
    """Read what `layer_ranges` wrote.

    Args:
        ranges: Such as "0,2,4,15-17"; empty for no layer.

    Returns:
        How much of each layer ran, by its index, ascending. 1 is a whole layer, 0.5 is attention or the MLP alone.

    Example:
        >>> layers_in("0,2,4,15-17")
        {0: 1, 2: 1, 4: 1, 15: 1, 16: 1, 17: 1}
    """
    found: dict[int, float] = {}
    for part in filter(None, ranges.split(",")):
        first, *last = part.rstrip("am").split("-")
        layers = range(int(first), int(last[0] if last else first) + 1)
        found |= dict.fromkeys(layers, 0.5 if part[-1] in "am" else 1)
    return found
