"""One Markdown table for all that hsdlab writes: reports, TensorBoard's texts and the pages of docs/."""

import json
import re
from collections.abc import Sequence

from tabulate import tabulate

from hsdlab.records.document import to_plain
from hsdlab.records.provenance import RunInfo


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: Sequence[str] | None = None) -> str:
    r"""Make a Markdown table of cells that are text already: numbers come with the digits they are to have.

    A line break in a cell becomes ``<br>`` and a ``|`` becomes ``\|``, so that no text can break the table.

    Args:
        header: The columns' names; one may be empty.
        rows: One cell for each column in each row.
        align: "left", "right" or "center" for each column; by default the first column is text, the others numbers.

    Returns:
        The table's lines, without a line break at the end.

    Raises:
        ValueError: If a row or `align` has not one entry for each column.

    Example:
        >>> print(markdown_table(["Strategy", "Layers"], [["`HSD()`", "21.75"]]))
        | Strategy   |   Layers |
        |:-----------|---------:|
        | `HSD()`    |    21.75 |
    """
    align = ["left", *["right"] * (len(header) - 1)] if align is None else align
    for each in (align, *rows):
        if len(each) != len(header):
            raise ValueError(f"The table has {len(header)} columns {list(header)}, but got {list(each)}.")
    cells = [[_safe(cell) for cell in row] for row in rows]
    names = [_safe(name) for name in header]
    return tabulate(cells, headers=names, tablefmt="pipe", disable_numparse=True, colalign=align if cells else None)


def _safe(text: str) -> str:
    """Return a text that stays in its cell."""
    return re.sub(r"(?<!\\)\|", r"\\|", text).replace("\r\n", "\n").replace("\n", "<br>")


def folded_run(run: RunInfo | None) -> str:
    """Render what a run was made with, for the end of a report in Markdown.

    Args:
        run: Provenance. None is written as an empty object.

    Returns:
        JSON within HTML's <details>, which shows it folded.
    """
    text = "{}" if run is None else json.dumps(to_plain(run), indent=2, ensure_ascii=False)
    return f"<details><summary>The run</summary>\n\n```json\n{text}\n```\n\n</details>"
