"""Lines of JSON that carry a hash of their own content, so that a later change is noticed."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from hsdlab.records.document import JsonValue, json_text

HASH_KEY = "hash"
_ENDS = re.compile(rb'(?:, )?"hash": "([0-9a-f]{16})"\}')


class ChangedLineError(ValueError):
    """The content of a line is not what was written."""


def to_line(content: Mapping[str, JsonValue]) -> bytes:
    """Return a JSON object as a line in UTF-8; its last key is the hash of what stands before it."""
    text = json_text(content).encode()[:-1]
    return text + (b", " if content else b"") + f'"{HASH_KEY}": "{_hash(text)}"}}\n'.encode()


def from_line(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line without its hash; a line of an earlier version has none.

    Raises:
        ChangedLineError: The line has a hash, and it is that of another content.
        ValueError: The line holds no JSON object.
    """
    line = line.removesuffix(b"\n")
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {content!r}")
    if HASH_KEY in content:
        found = _ENDS.search(line, pos=max(0, line.rfind(b'"hash": "') - 2))
        if found is None or found.end() != len(line) or found[1].decode() != _hash(line[: found.start()]):
            raise ChangedLineError("its content is not what was written: it has another hash")
        del content[HASH_KEY]
    return content


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
