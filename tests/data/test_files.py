"""What a data file may be wrapped in, and what is said of one that is not text in UTF-8."""

import codecs
import gzip
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsdlab.data import DataFolder, Example, JSONLines
from hsdlab.data.files import read_bytes
from hsdlab.errors import UserError

LINE = json.dumps({"id": "a", "source": "Café ☃", "references": ["b"]}, ensure_ascii=False)
EXAMPLES = [Example("a", "Café ☃", ("b",))]


def load(folder, data, name="test.jsonl", data_class=JSONLines):
    (folder / name).write_bytes(data)
    return data_class(str(folder)).load_examples("test")


def test_a_byte_order_mark_of_utf_8_is_no_part_of_the_text(tmp_path):
    assert load(tmp_path, codecs.BOM_UTF8 + LINE.encode()) == EXAMPLES


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["test.jsonl", "test.csv", "test.json"])
def test_other_unicode_encodings_are_named(tmp_path, encoding, name):
    found = encoding[:6].upper()
    expected = f"{name} is in {found}, expected UTF-8. Convert it: iconv -f {found} "
    with pytest.raises(UserError, match=re.escape(expected)):
        load(tmp_path, LINE.encode(encoding), name, DataFolder)


def test_compressed_files_are_read_and_damaged_ones_named(tmp_path):
    data, name = gzip.compress(LINE.encode()), "test.jsonl.gz"
    assert load(tmp_path, data, name) == load(tmp_path, data, name, DataFolder) == EXAMPLES
    for damaged in (data[:-9], data[:12] + b"\xff" + data[13:], data[:-8] + b"\0" * 8, data[:2]):
        with pytest.raises(UserError, match=r"test\.jsonl\.gz is compressed, but damaged or cut short: "):
            load(tmp_path, damaged, name)
    (tmp_path / name).unlink()
    assert load(tmp_path, data) == EXAMPLES  # by what it holds, whatever its name


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (b"PK\x03\x04", "is not text, but a ZIP archive or a spreadsheet: unpack it, or save the sheet as .csv"),
        (b"BZh9", "is not text, but compressed with bzip2: unpack it"),
        (b"\xfd7zXZ\x00", "is not text, but compressed with xz: unpack it"),
        (b"\x28\xb5\x2f\xfd", "is not text, but compressed with zstd: unpack it"),
        (b"PAR1", "is not text, but Parquet: name it .parquet and read it with --data=DataFolder"),
        (b"ARROW1", "is not text, but Arrow: save it as Parquet"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, begin, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load(tmp_path, begin + b"\0\1\2")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl cannot be read: No such file or directory$"):
        read_bytes(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match=r" cannot be read: Is a directory$"):
        read_bytes(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(), max_size=8),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "source", "references", "reference", "\ud83d"]), values, max_size=4)
    ),
    max_leaves=8,
)
PLAIN = st.text("abc \ud83d\u2028☃\0", max_size=6)
OBJECTS = st.fixed_dictionaries(
    {"id": PLAIN, "source": PLAIN, "references": st.lists(PLAIN, max_size=2)}, optional={"score": JSON}
)
GOOD = st.integers(0, 99).map(lambda number: {"id": str(number), "source": "a", "references": ["b"]})
LINES = st.binary(max_size=30) | (JSON | OBJECTS | GOOD).map(json.dumps).map(str.encode)
ANY_LINES = st.lists(LINES, max_size=5).map(b"\n".join)
HEADERS = [b"id,source,reference\n", b"source,references\n", b"a,b,c\n"]
PIECES = [*HEADERS, b'"', b",", b"\t", b"\n", b"\r", b"\xff", b"\0"]
TABLES = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)
SUFFIXES = st.sampled_from([".jsonl", ".json", ".csv", ".tsv"])
PREFIXES = st.sampled_from([b"", b"", b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, b"\x1f\x8b", b"BZh", b"["])


@pytest.mark.filterwarnings("ignore:.*repeat the source of an earlier row")
@settings(max_examples=400, deadline=None)
@given(data=ANY_LINES | TABLES | st.binary(), prefix=PREFIXES, suffix=SUFFIXES)
def test_any_bytes_give_examples_or_one_error_that_names_the_file(tmp_path_factory, data, prefix, suffix):
    folder = tmp_path_factory.mktemp("any", numbered=True)
    file = folder / f"test{suffix}"
    data_class = JSONLines if suffix == ".jsonl" else DataFolder
    try:
        examples = load(folder, prefix + data, file.name, data_class)
    except UserError as error:
        message = str(error)
        assert message.startswith(str(file))
        message.encode()
        assert len(message) < len(str(file)) * 2 + 600
        assert "\n" not in message
    else:
        assert data_class(str(folder)).examples("test") == examples
        assert all(isinstance(example, Example) for example in examples)
    finally:
        file.unlink()
        folder.rmdir()


def test_the_fuzz_reaches_examples_too(tmp_path):
    reached = set()

    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(data=ANY_LINES)
    def look(data):
        try:
            reached.add(len(load(tmp_path, data)) > 0)
        except UserError as error:
            reached.add(re.sub(r".*test\.jsonl(, line \d+)?|'.*|\".*|\d+", "", str(error))[:30])

    look()
    assert True in reached
    assert len(reached) > 6
