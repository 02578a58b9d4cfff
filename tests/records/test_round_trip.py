"""Every record comes back from its JSON exactly as it was; whatever else a file holds is one RunError that names it."""

import json
from dataclasses import MISSING, fields
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsdlab.costs import Cost
from hsdlab.errors import RunError
from hsdlab.records.document import KIND_KEY, NOT_FINITE_KEY, SCHEMA_VERSION, VERSION_KEY, from_plain
from hsdlab.records.example import ExampleRecord
from tests.records.any_record import JSON_VALUES, any_record, document_kinds, field_types

FREE = ("config", "init_args", "generation")
"""Objects whose content is the user's or transformers': any JSON is right there."""

HALVES = ("executed_layers", "computed_layers")
"""Numbers that may have a fraction: attention and MLP count as half a layer each."""

few = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
each_kind = pytest.mark.parametrize("kind", document_kinds(), ids=lambda kind: kind.__name__)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def strict(text: str | bytes) -> Any:
    return json.loads(text, parse_constant=refuse)


def nodes(value: Any, place: tuple = ()) -> list[tuple]:
    """The places of all values that a record has a type for, null apart."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    here = [place] if place and value is not None else []
    return here + [
        each
        for key, item in inner
        if key != NOT_FINITE_KEY
        for each in ([(*place, key)] if key in FREE else nodes(item, (*place, key)))
    ]


def of_wrong_types(value: Any, field: str | int) -> list[Any]:
    """Values of other types than that of a value, which stands in this field."""
    if field == "draft_vocabulary":  # a number, the name of a file, or nothing
        return [True, 0.5, [1]]
    if isinstance(value, bool):
        return [1, "true"]
    if isinstance(value, int):
        return [str(value), True, [value], *([] if field in HALVES else [0.5])]
    if isinstance(value, float):
        return [str(value), True, [value]]
    if isinstance(value, str):
        return [1, False, [value]]
    return ["text", 1, {"0": 1}] if isinstance(value, list) else ["text", 1, [], [["a", "b"]]]


def replaced(content: Any, place: tuple, value: Any) -> Any:
    """The same content with another value at a place."""
    if not place:
        return value
    copy = content.copy()
    copy[place[0]] = replaced(content[place[0]], place[1:], value)
    return copy


def test_the_documents_are_found():
    names = {kind.__name__ for kind in document_kinds()}
    assert {"Comparison", "StrategyResult", "RunInfo", "BenchResult", "ExitQuality"} <= names
    assert len({kind.kind for kind in document_kinds()}) == len(names) >= 8


def test_a_type_that_json_may_not_hold_has_no_strategy():
    with pytest.raises(TypeError, match="no strategy for this type"):
        any_record(set[int])


@each_kind
@few
@given(data=st.data())
def test_a_document_comes_back_exactly(kind, data):
    record = data.draw(any_record(kind))
    text = record.to_json()
    back = kind.from_json(text)
    assert repr(back) == repr(record)  # every bit of a number, and not-a-number equals itself
    assert type(back) is kind
    assert strict(text)[KIND_KEY] == kind.kind
    assert strict(text)[VERSION_KEY] == kind.version
    assert strict(text.encode()) == strict(text)


@each_kind
def test_a_document_comes_back_from_its_file(kind, tmp_path):
    @settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
    @given(record=any_record(kind))
    def check(record):
        record.write(tmp_path / "file.json")
        assert repr(kind.read(tmp_path / "file.json")) == repr(record)

    check()


@settings(few, max_examples=30)
@given(record=any_record(ExampleRecord))
def test_an_example_comes_back_exactly(record):
    line = record.to_line()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert strict(line)[VERSION_KEY] == SCHEMA_VERSION
    assert repr(ExampleRecord.from_line(line)) == repr(record)


@pytest.mark.parametrize("field", HALVES)
def test_half_layers_come_back_and_truth_values_are_refused(field):
    assert getattr(from_plain({field: 1.5}, Cost), field) == 1.5
    with pytest.raises(ValueError, match=r"expected int \| float"):
        from_plain({field: True}, Cost)


@each_kind
@few
@given(data=st.data())
def test_what_is_changed_in_a_document_is_refused(kind, data):
    content = strict(data.draw(any_record(kind)).to_json())
    required = [each.name for each in fields(kind) if each.default is each.default_factory is MISSING]
    place = data.draw(st.sampled_from([each for each in nodes(content) if each[0] not in (KIND_KEY, VERSION_KEY)]))
    old = content
    for key in place:
        old = old[key]
    missing = data.draw(st.sampled_from(required))
    for changed, message in (
        (content | {KIND_KEY: "recipe"}, f"expected a {kind.kind}, got a recipe"),
        (
            content | {VERSION_KEY: kind.version + 1},
            f"schema version {kind.version + 1}; this version of hsdlab reads version",
        ),
        (content | {VERSION_KEY: "2"}, "schema version 2; this version"),
        (content | {"unheard_of": 1}, "unheard_of"),
        ({name: value for name, value in content.items() if name != missing}, missing),
        (replaced(content, place, data.draw(st.sampled_from(of_wrong_types(old, place[-1])))), "expected a whole"),
        ([content], "as a JSON object"),
    ):
        with pytest.raises(RunError) as error:
            kind.from_json(json.dumps(changed), "runs/x/file.json")
        assert str(error.value).startswith("runs/x/file.json: ")
        assert message in str(error.value)


@each_kind
@few
@given(data=st.data())
def test_a_document_that_was_cut_off_is_refused(kind, data):
    text = data.draw(any_record(kind)).to_json().rstrip()
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(RunError, match="as a JSON object"):
        kind.from_json(text[:cut])


@each_kind
@settings(few, max_examples=20)
@given(data=st.data())
def test_arbitrary_content_is_refused(kind, data):
    """With the right names, other values; in the present version and the one before."""
    names = st.sampled_from([*field_types(kind), KIND_KEY, VERSION_KEY, NOT_FINITE_KEY, "strategies", "baseline"])
    values = JSON_VALUES | st.sampled_from(
        [1, 2, kind.kind, {"name": "a"}, {"/seed": "a"}, {"/seed": 10**400}, 10**400]
    )
    content = data.draw(JSON_VALUES | st.dictionaries(names, values))
    with pytest.raises(RunError, match=r"^here: "):
        kind.from_json(json.dumps(content), "here")


@each_kind
@few
@given(text=st.text() | st.sampled_from(["[" * 100_000, '{"run": ' * 700 + "1" + "}" * 700, "NaN", "1" * 5000]))
def test_arbitrary_text_is_refused(kind, text):
    with pytest.raises(RunError, match=r"^here: "):
        kind.from_json(text, "here")


@each_kind
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x89PNG\r\n", b"", b"\xef\xbb\xbf{}"])
def test_a_binary_file_is_refused(kind, content, tmp_path):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(RunError, match=r"file\.json: expected a"):
        kind.read(tmp_path / "file.json")


def test_a_missing_file_is_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        document_kinds()[0].read(tmp_path / "file.json")


@settings(few, max_examples=60)
@given(line=st.binary() | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_an_arbitrary_line_is_no_example(line):
    with pytest.raises(ValueError, match=r"no prediction"):
        ExampleRecord.from_line(line)
