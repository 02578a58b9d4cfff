"""Document: a record that is a JSON file of its own, versioned, and read back exactly as it was written.

JSON has no infinity and no NaN. Such a number is written as null, and the key "not_finite" at the end of the document
says which number stood where.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin

import cattrs

from hsdlab.errors import RunError
from hsdlab.records.files import replace_file

SCHEMA_VERSION = 2
VERSION_KEY, KIND_KEY, NOT_FINITE_KEY = "schema_version", "kind", "not_finite"

NOT_A_RECORD = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)
"""The errors that reading a record from arbitrary content may raise."""

JsonValue = Any
"""What JSON holds: None, bool, int, float, str, or a list or dict of these."""
JsonObject = Mapping[str, JsonValue]
"""Settings whose names and types the user chooses: a configuration, the arguments of a class."""

Record = TypeVar("Record")
Upgrade = Callable[[dict[str, JsonValue]], dict[str, JsonValue]]
"""Turns the content of a file of one schema version into that of the next one."""

_converter = cattrs.Converter(forbid_extra_keys=True)
for _type, _accepted in ((float, (int, float)), (int, (int,)), (str, (str,)), (bool, (bool,))):
    _converter.register_structure_hook(_type, lambda value, type_, accepted=_accepted: _of(type_, value, accepted))
_converter.register_structure_hook(
    int | float, lambda value, _: _of(int if isinstance(value, int) else float, value, (int, float))
)
_converter.register_structure_hook(
    int | str | None,
    lambda value, _: None if value is None else _of(str if isinstance(value, str) else int, value, (int, str)),
)


@_converter.register_structure_hook_factory(lambda type_: get_origin(type_) is tuple)
def _list_as_tuple(type_: Any, converter: cattrs.Converter) -> Callable[[JsonValue, Any], tuple[Any, ...]]:
    """Make tuples from lists only. A string or an object could become a tuple too, and is refused."""
    element = get_args(type_)[0]

    def structure(value: JsonValue, _: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise TypeError(f"expected a list, got {value!r}")
        return tuple(converter.structure(item, element) for item in value)

    return structure


def json_text(content: JsonValue, indent: int | None = None) -> str:
    """Write strict JSON that UTF-8 can encode.

    Args:
        content: What JSON holds, without infinity and NaN.
        indent: Spaces per level; None for one line.

    Returns:
        The text. Half of a surrogate pair, which odd file names contain, is escaped; other characters are not.

    Raises:
        ValueError: The content holds infinity or NaN.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def to_plain(record: object) -> dict[str, JsonValue]:
    """Turn a record into what JSON holds.

    Args:
        record: A dataclass of this package.

    Returns:
        Field to value, nested. Infinity and NaN are None. The extra key "not_finite" then maps the place of each (a
        JSON Pointer, RFC 6901) to "inf", "-inf" or "nan".
    """
    lost: dict[str, str] = {}
    content = _without_not_finite(_converter.unstructure(record), "", lost)
    return content | ({NOT_FINITE_KEY: lost} if lost else {})


def from_plain(content: Mapping[str, JsonValue], record: type[Record]) -> Record:
    """Make a record from what `to_plain` returned.

    Args:
        content: Its keys are the record's fields, and "not_finite" where a number was infinity or NaN. Any other key is
            an error.
        record: The dataclass to make.

    Returns:
        The record, equal to the one that `to_plain` got.

    Raises:
        ValueError: A field is missing, unknown or of another type; the message names each of them.
        NOT_A_RECORD: One of these errors, where the content is damaged in another way.
    """
    lost = content.get(NOT_FINITE_KEY, {})
    content = {name: value for name, value in content.items() if name != NOT_FINITE_KEY}
    content = _with_not_finite(content, "", {place: float(value) for place, value in lost.items()}) if lost else content
    try:
        return _converter.structure(content, record)
    except cattrs.BaseValidationError as errors:
        raise ValueError("; ".join(cattrs.transform_error(errors))) from errors


def kind_of(path: Path) -> str | None:
    """Look up what a file holds.

    Args:
        path: A file that `Document.write` wrote.

    Returns:
        The `kind` of its class; None where the file names none, or is damaged.
    """
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))[KIND_KEY])
    except NOT_A_RECORD:  # reading it as what it should be says what is wrong
        return None


class Document:
    """A frozen dataclass that is written to a file of its own.

    A subclass sets `kind`, and the others where its schema changed.

    Attributes:
        kind: What the file holds, in words for messages; the file notes it under "kind".
        version: Its schema version; the file notes it under "schema_version".
        upgrades: For each older version that can be read, what turns the content of such a file, without its kind and
            version, into that of the next version. By default only the present version can be read.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = SCHEMA_VERSION
    upgrades: ClassVar[Mapping[int, Upgrade]] = {}

    def to_json(self) -> str:
        """Write the record as JSON.

        Returns:
            Indented text with a final newline. The kind comes first, then the schema version, then the fields.
        """
        document = {KIND_KEY: self.kind, VERSION_KEY: self.version, **to_plain(self)}
        return json_text(document, indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write the record to a file, whole or not at all.

        Args:
            path: An existing file is replaced; its folder is made if it is missing.

        Raises:
            RunError: It could not be written: no space, no permission, and so on.
        """
        replace_file(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the record from a file.

        Args:
            path: A file that `write` of this version wrote, or of an older one that `upgrades` holds.

        Returns:
            The record; one of an older version is upgraded.

        Raises:
            RunError: The file holds something else, or a version that cannot be read.
            FileNotFoundError: There is no such file.
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
            text: What `to_json` of this version or an older one returned. A text without a version counts as version 1.
            where: Where the text comes from, for messages.

        Returns:
            The record; one of an older version is upgraded.

        Raises:
            RunError: The text holds something else, or a version that cannot be read.
        """
        try:
            content = json.loads(text)
            version = content.pop(VERSION_KEY, None) or content.pop("version", None) or 1
            kind = content.pop(KIND_KEY, cls.kind)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise RunError(f"{where}: expected a {cls.kind} as a JSON object, got {text[:80]!r}.") from error
        if kind != cls.kind:
            raise RunError(f"{where}: expected a {cls.kind}, got a {kind}.")
        oldest = min(cls.upgrades, default=cls.version)
        if version not in range(oldest, cls.version + 1):
            known = f"version {cls.version}" if oldest == cls.version else f"versions {oldest} to {cls.version}"
            raise RunError(
                f"{where}: got a {cls.kind} of schema version {version}; this version of hsdlab reads {known}. "
                "Create it again, or read it with the version of hsdlab that wrote it."
            )
        try:
            for older in range(version, cls.version):
                content = cls.upgrades[older](content)
            return from_plain(content, cls)
        except NOT_A_RECORD as error:
            raise RunError(f"{where}: expected a whole {cls.kind}; {error or type(error).__name__}.") from error


def _of(type_: type, value: JsonValue, accepted: tuple[type, ...]) -> Any:
    """Return the value as the type. `True` is not taken as a number, and nothing but a string as a string."""
    if not isinstance(value, accepted) or (isinstance(value, bool) and type_ is not bool):
        raise TypeError(f"expected {type_.__name__}, got {value!r}")
    return type_(value)


def _without_not_finite(value: JsonValue, place: str, lost: dict[str, str]) -> JsonValue:
    """Return a copy with null for each infinity or NaN, noted in `lost` by its JSON Pointer (RFC 6901)."""
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
