"""Hypothesis strategies for records, made from their annotations, and all kinds of documents that there are."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

import hsdlab.records
from hsdlab.records.document import Document, JsonObject

ODD_TEXT = st.text(max_size=8) | st.sampled_from(["", "/", "~1", "a\u2028b", "\ud800", "\x00", "é漢🙂"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ODD_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXT, inner, max_size=3),
    max_leaves=6,
)
SIMPLE = {float: st.floats(), int: st.integers(), str: ODD_TEXT, bool: st.booleans(), NoneType: st.none()}


def document_kinds() -> list[type[Document]]:
    """Return all documents of hsdlab.records, found by importing each of its modules."""
    for module in pkgutil.iter_modules(hsdlab.records.__path__, "hsdlab.records."):
        importlib.import_module(module.name)

    def below(kind: type[Document]) -> list[type[Document]]:
        return [each for child in kind.__subclasses__() for each in (child, *below(child))]

    found = [each for each in below(Document) if each.__module__.startswith("hsdlab.records.")]
    return sorted(found, key=lambda each: each.__name__)


def field_types(record: type) -> dict[str, Any]:
    """Return the fields of a record with their types."""
    hints = get_type_hints(record)
    return {each.name: hints[each.name] for each in fields(record)}


@cache
def any_record(record: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for a type of which records are made.

    Raises:
        TypeError: The type is of another kind: JSON might not hold it.
    """
    if record in SIMPLE:
        return SIMPLE[record]
    if record == JsonObject:
        return st.dictionaries(ODD_TEXT, JSON_VALUES, max_size=2)
    if is_dataclass(record):
        return st.builds(record, **{name: any_record(each) for name, each in field_types(record).items()})
    arguments = get_args(record)
    if get_origin(record) in (Union, UnionType):
        return st.one_of(*map(any_record, arguments))
    if get_origin(record) is tuple and arguments[1:] == (...,):
        return st.lists(any_record(arguments[0]), max_size=2).map(tuple)
    if get_origin(record) is tuple:
        return st.tuples(*map(any_record, arguments))
    if get_origin(record) is Mapping and arguments[0] is str:
        return st.dictionaries(ODD_TEXT, any_record(arguments[1]), max_size=2)
    raise TypeError(f"{record}: no strategy for this type, and perhaps no JSON that holds it")
