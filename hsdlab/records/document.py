"""Document: a record that is a JSON file of its own, versioned, and read back exactly as it was written.

JSON has no infinity and no not-a-number. A number that is none is written as null, and "not_finite", at the end of the
document, says where and which one it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import cattrs

from hsdlab.errors import RunError
from hsdlab.records.files import replace_file

SCHEMA_VERSION = 2
VERSION_KEY, KIND_KEY, NOT_FINITE_KEY = "schema_version", "kind", "not_finite"

JsonValue = Any
"""None, bool, int, float, str, or a list or dict of such: what JSON holds."""
JsonObject = Mapping[str, JsonValue]
"""Settings of the user's, whose names and types are not ours: a configuration, the arguments of a class."""

Record = TypeVar("Record")

_converter = cattrs.Converter(forbid_extra_keys=True)
for _type, _accepted in ((float, (int, float)), (int, (int,)), (str, (str,)), (bool, (bool,))):
    _converter.register_structure_hook(_type, lambda value, type_, accepted=_accepted: _of(type_, value, accepted))


def to_plain(record: object) -> dict[str, JsonValue]:
    """Return a record as JSON holds it; see the module on numbers that are none."""
    lost: dict[str, str] = {}
    content = _without_not_finite(_converter.unstructure(record), "", lost)
    return content | ({NOT_FINITE_KEY: lost} if lost else {})


def from_plain(content: Mapping[str, JsonValue], record: type[Record]) -> Record:
    """Return the record that `to_plain` made the content of.

    Raises:
        ValueError, TypeError, KeyError: The content is that of no such record.
    """
    lost = content.get(NOT_FINITE_KEY, {})
    content = {name: value for name, value in content.items() if name != NOT_FINITE_KEY}
    content = _with_not_finite(content, "", {place: float(value) for place, value in lost.items()}) if lost else content
    try:
        return _converter.structure(content, record)
    except cattrs.BaseValidationError as errors:
        raise ValueError("; ".join(cattrs.transform_error(errors))) from errors


class Document:
    """A frozen dataclass that is written to a file of its own.

    A subclass names its `kind`, and the `oldest` schema version that it reads: if that is 1, it knows how to `upgrade`
    the content of such a file.
    """

    kind: ClassVar[str]
    oldest: ClassVar[int] = SCHEMA_VERSION

    @staticmethod
    def upgrade(content: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Turn the content of a file of version 1 into what the present version would have written."""
        return content

    def to_json(self) -> str:
        """Return the record as JSON text."""
        document = {KIND_KEY: self.kind, VERSION_KEY: SCHEMA_VERSION, **to_plain(self)}
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the record to a file, whole or not at all."""
        replace_file(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the record from a file, also from one that the version before wrote.

        Raises:
            RunError: It holds something else, or a version that cannot be read.
            FileNotFoundError: There is none.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RunError(f"{path}: expected a {cls.kind} as JSON in UTF-8, got bytes that are no text.") from error
        return cls.from_json(text, str(path))

    @classmethod
    def from_json(cls, text: str, where: str = "the text") -> Self:
        """Read the record from JSON text.

        Args:
            text: What `to_json` gave, or the version before.
            where: The text's place, for messages.

        Raises:
            RunError: It holds something else, or a version that cannot be read.
        """
        try:
            content = json.loads(text)
            version = content.pop(VERSION_KEY, None) or content.pop("version", None) or 1
            kind = content.pop(KIND_KEY, cls.kind)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise RunError(f"{where}: expected a {cls.kind} as a JSON object, got {text[:80]!r}.") from error
        if kind != cls.kind:
            raise RunError(f"{where}: expected a {cls.kind}, got a {kind}.")
        if version not in range(cls.oldest, SCHEMA_VERSION + 1):
            known = f"version {SCHEMA_VERSION}" if cls.oldest == SCHEMA_VERSION else f"versions 1 to {SCHEMA_VERSION}"
            raise RunError(
                f"{where}: got a {cls.kind} of schema version {version}; this version of hsdlab reads {known}. "
                "Make it anew, or read it with the hsdlab that wrote it."
            )
        try:
            return from_plain(cls.upgrade(content) if version == 1 else content, cls)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise RunError(f"{where}: expected a whole {cls.kind}; {error or type(error).__name__}.") from error


def _of(type_: type, value: JsonValue, accepted: tuple[type, ...]) -> Any:
    """Return the value as the type; `True` is no number, and nothing is made a text that is none."""
    if not isinstance(value, accepted) or (isinstance(value, bool) and type_ is not bool):
        raise TypeError(f"expected {type_.__name__}, got {value!r}")
    return type_(value)


def _without_not_finite(value: JsonValue, place: str, lost: dict[str, str]) -> JsonValue:
    """Return a copy with null for each number that is none, noted in `lost` by its JSON Pointer (RFC 6901)."""
    if isinstance(value, Mapping):
        return {key: _without_not_finite(item, _below(place, key), lost) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_not_finite(item, _below(place, index), lost) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        lost[place] = str(value)
        return None
    return value


def _with_not_finite(value: JsonValue, place: str, lost: Mapping[str, float]) -> JsonValue:
    """Undo `_without_not_finite`."""
    if isinstance(value, Mapping):
        return {key: _with_not_finite(item, _below(place, key), lost) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_not_finite(item, _below(place, index), lost) for index, item in enumerate(value)]
    return lost.get(place, value)


def _below(place: str, key: str | int) -> str:
    return f"{place}/{str(key).replace('~', '~0').replace('/', '~1')}"
