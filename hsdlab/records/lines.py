"""Lines of JSON that carry a hash of their own content, so that a later change is noticed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hsdlab.records.document import JsonValue, json_text

HASH_KEY = "hash"


class ChangedLineError(ValueError):
    """The content of a line is not what was written."""


def to_line(content: Mapping[str, JsonValue]) -> bytes:
    """Return a JSON object as a line in UTF-8; its last key is the hash of the others."""
    text = json_text(content)
    digest = json_text({HASH_KEY: _hash(json.loads(text))})
    return f"{text[:-1]}{', ' if content else ''}{digest[1:]}\n".encode()


def from_line(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line without its hash; a line of an earlier version has none.

    Raises:
        ChangedLineError: The line has a hash, and it is that of another content.
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
    """Return 16 hex digits of what JSON says, however it is written."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
