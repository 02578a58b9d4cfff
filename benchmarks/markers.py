"""Generated parts of Markdown files: the text between two comment lines."""

import re


def filled(text: str, name: str, content: str) -> str:
    """Return ``text`` with ``content`` between ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        ValueError: If the text does not hold the two markers once each, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected {begin} and {end} once each, in this order")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{content.strip()}\n{end}", text)
