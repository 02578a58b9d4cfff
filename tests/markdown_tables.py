"""Markdown tables without the spaces that align their source, to compare with what a reader sees."""

import re


def unpadded(text):
    """A text whose tables' lines are as `| a | b |` and `| --- | ---: |`."""
    return "\n".join(_unpadded(line) if line.startswith("|") else line for line in text.split("\n"))


def _unpadded(line):
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    if all(re.fullmatch(":?-+:?", cell) for cell in cells):
        cells = ["---:" if cell.endswith(":") else "---" for cell in cells]
    return f"| {' | '.join(cells)} |"
