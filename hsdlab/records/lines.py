"""Lines of JSON that carry a hash of their own content, so that a later change is noticed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hsdlab.records.document import JsonValue, json_text

HASH_KEY = "hash"


class ChangedLineError(ValueError):
    """The content of a line differs from what was written."""


def to_line(content: Mapping[str, JsonValue]) -> bytes:
    """Write a JSON object as a line that carries its own hash.

    Args:
        content: The object, without infinity and NaN.

    Returns:
        UTF-8 with a final newline; the last key is the hash of the others.
    """
    text = json_text(content)
    digest = json_text({HASH_KEY: _hash(json.loads(text))})
    return f"{text[:-1]}{', ' if content else ''}{digest[1:]}\n".encode()


def from_line(line: bytes) -> dict[str, Any]:
    """Read the JSON object of a line, and check its hash.

    Args:
        line: With or without its newline. A line of version 1 has no hash, and is not checked.

    Returns:
        The object without its hash.

    Raises:
        ChangedLineError: The hash is that of another content.
        ValueError: The line holds no JSON object.
    """
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {content!r}")
    noted = content.pop(HASH_KEY, None)
    if noted is not None and noted != _hash(content):
        raise ChangedLineError("its content is not what was written: it has another hash")
    return content


def _hash(content: JsonValue) -> str:
    """Return 16 hex digits of the content, whatever the order of keys and the spaces in the text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
