"""The user's own files of each kind, with their own names of columns."""

import csv
import gzip
import json
import re
import warnings

import pyarrow
import pyarrow.parquet
import pytest
from jsonargparse import ArgumentParser

from hsdlab.data import DataFolder, Example, GenerationDataModule, JSONLines
from hsdlab.errors import UserError

ROWS = [
    {"nr": "007", "text": 'He said "rain", then\nleft.', "sum": "Rain; 1,5 mm"},
    {"nr": "2", "text": "NA", "sum": "Café ☃"},
]
COLUMNS = {"source_column": "text", "reference_columns": "sum", "id_column": "nr"}
EXAMPLES = [Example(row["nr"], row["text"], (row["sum"],)) for row in ROWS]


def write_table(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_json_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS = {
    ".csv": write_table,
    ".tsv": lambda path, rows: write_table(path, rows, "\t"),
    ".json": lambda path, rows: path.write_text(json.dumps(rows, indent=1), encoding="utf-8"),
    ".jsonl": write_json_lines,
    ".ndjson": write_json_lines,
    ".parquet": write_parquet,
}


def text_of(folder, text, name="test.csv", **options):
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return DataFolder(str(folder), **options)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", WRITERS)
def test_each_kind_of_file_gives_the_same_examples(tmp_path, suffix):
    WRITERS[suffix](tmp_path / f"test{suffix}", ROWS)
    assert DataFolder(str(tmp_path), **COLUMNS).examples("test") == EXAMPLES


def test_files_that_json_lines_reads_are_read_alike_without_an_option(tmp_path):
    rows = [{"id": "a", "source": "b", "references": ["c", "d"], "more": 1}]
    rows += [{"id": "e", "source": "f", "references": ["g"]}]
    write_json_lines(tmp_path / "test.jsonl", rows)
    assert DataFolder(str(tmp_path)).examples("test") == JSONLines(str(tmp_path)).examples("test")
    write_json_lines(tmp_path / "train.json", rows)  # as `datasets` writes it
    assert DataFolder(str(tmp_path)).examples("train") == DataFolder(str(tmp_path)).examples("test")


def test_text_files_may_be_compressed_and_a_long_article_is_a_cell(tmp_path):
    long = "word " * 40_000
    (tmp_path / "test.csv.gz").write_bytes(gzip.compress(f"source,reference\n{long},b\n".encode()))
    before = csv.field_size_limit()
    assert DataFolder(str(tmp_path)).examples("test") == [Example("test-000001", long, ("b",))]
    assert csv.field_size_limit() == before < len(long)


def test_without_ids_an_example_has_the_number_of_its_row(tmp_path):
    data = text_of(tmp_path, "\nsource,reference\r\na,b\r\n\r\nc,d")
    assert data.examples("test") == [Example("test-000001", "a", ("b",)), Example("test-000002", "c", ("d",))]


def test_several_columns_of_references_may_be_empty_where_one_is_not(tmp_path):
    data = text_of(tmp_path, "source,r1,r2\na,b,c\nd,,e\n", reference_columns=["r1", "r2"])
    assert [example.references for example in data.examples("test")] == [("b", "c"), ("e",)]
    data = text_of(tmp_path, "source,r1,r2\na,b,c\nd,,\n", reference_columns=["r1", "r2"])
    with pytest.raises(UserError, match=r'test\.csv, row 2 \(line 3\): no reference in "r1, r2": expected'):
        data.examples("test")


def test_parquet_columns_may_hold_lists_and_whole_numbers(tmp_path):
    rows = [{"id": 7, "source": "a", "reference": ["b", None, "c"]}, {"id": 8, "source": "d", "reference": ["e"]}]
    write_parquet(tmp_path / "test.parquet", rows)
    assert DataFolder(str(tmp_path)).examples("test") == [Example("7", "a", ("b", "c")), Example("8", "d", ("e",))]


def test_a_split_in_parts_is_read_in_their_order(tmp_path):
    for number in (1, 0):
        write_parquet(tmp_path / f"test-0000{number}-of-00002.parquet", [{"source": f"s{number}", "reference": "r"}])
    (tmp_path / "test-notes.parquet").write_text("no part")
    examples = DataFolder(str(tmp_path)).examples("test")
    assert examples == [Example("test-000001", "s0", ("r",)), Example("test-000002", "s1", ("r",))]


def test_rows_of_one_group_are_one_example(tmp_path):
    table = "mr,ref,id\nB,b1,1\nA,a1,2\nB,b2,3\n"
    options = {"source_column": "mr", "reference_columns": "ref"}
    data = text_of(tmp_path, table, **options, group_column="mr")
    assert data.examples("test") == [Example("1", "B", ("b1", "b2")), Example("2", "A", ("a1",))]
    with pytest.warns(UserWarning, match=r"test\.csv: 1 of 3 rows repeat the source .* give --data\.group_column=mr$"):
        assert len(text_of(tmp_path, table, **options).examples("test")) == 3
    with pytest.raises(UserError, match=r'row 3 \(line 4\): another "mr" than row 1 \(line 2\) with the same "set"'):
        text_of(tmp_path, "mr,ref,set\nB,b1,1\nA,a1,2\nC,b2,1\n", **options, group_column="set").examples("test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "test.csv holds no row: expected one example at least"),
        ("source,reference\n\n", "test.csv holds no row"),
        ("text,reference\na,b\n", 'test.csv, row 1 (line 2): no column "source"; got text, reference'),
        ("source,summary\na,b\n", 'test.csv, row 1 (line 2): no column "reference"; got source, summary'),
        ("source;reference\na;b\n", "test.csv: the header has one column only, 'source;reference', split at ','"),
        ("source,reference,source\na,b,c\n", 'test.csv: the column "source" is there twice: leave one of them'),
        ("source,reference\na,b\nc\n", "row 2 (line 3): 1 cells, but the header names 2 columns (source, reference)"),
        ("source,reference\na,b,c\n", "test.csv, row 1 (line 2): 3 cells, but the header names 2 columns"),
        ('source,reference\n"a\nb",c\n,d\n', """test.csv, row 2 (line 4): "source" has to hold text, got ''"""),
        ('source,reference\na,"b" c\n', "row 1 (line 2): ',' expected after '\"'. A cell with quotation marks"),
        ('source,reference\na,b\nc,"d\n', "test.csv, row 2 (line 3): unexpected end of data"),
        ("source,reference\na,\n", 'test.csv, row 1 (line 2): no reference in "reference"'),
        ("source,reference\na, \n", """test.csv, row 1 (line 2): "reference" has to hold text, got ' '"""),
        ("id,source,reference\n1,a,b\n1,c,d\n", 'test.csv, row 2 (line 3): id "1" is also that of row 1 (line 2)'),
        ("id,source,reference\n,a,b\n", """test.csv, row 1 (line 2): "id" has to hold text, got ''"""),
    ],
)
def test_what_is_wrong_in_a_table_is_said_with_file_row_and_column(tmp_path, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        text_of(tmp_path, text).examples("test")


def test_a_table_in_another_encoding_is_named_with_its_line(tmp_path):
    (tmp_path / "test.csv").write_bytes("source,reference\na,b\ncafé,d\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"test\.csv, line 3 is not UTF-8: "):
        DataFolder(str(tmp_path)).examples("test")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, 'test.json, line 1: no key "source"; got a'),
        ([], "test.json holds no row"),
        ([["a", "b"]], "test.json, element 1: expected a JSON object, got list"),
        ([{"source": "a", "reference": "b"}, {"source": 3}], 'element 2: "source" has to be a string, got int'),
        ([{"source": "a", "reference": 3}], 'test.json, element 1: "reference" has to be a string, got int'),
        ([{"source": "a", "references": [["b"]]}], 'test.json, element 1: "references" has to be a string, got list'),
        ([{"id": True, "source": "a", "reference": "b"}], 'test.json, element 1: "id" has to be a string, got bool'),
        ([{"id": 1.5, "source": "a", "reference": "b"}], 'test.json, element 1: "id" has to be a string, got float'),
        ([{"id": n, "source": "a", "reference": "b"} for n in (1, "1")], 'element 2: id "1" is also that of element 1'),
    ],
)
def test_what_is_wrong_in_a_json_file_is_said_with_its_element(tmp_path, value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        text_of(tmp_path, json.dumps(value), "test.json").examples("test")


def test_json_that_is_cut_short_is_named_with_line_and_column(tmp_path):
    with pytest.raises(UserError, match=r"test\.json is not JSON in UTF-8: Expecting value \(line 2, column 1\)$"):
        text_of(tmp_path, '[{"source": "a"},\n', "test.json").examples("test")


def test_damaged_parquet_is_named(tmp_path):
    write_parquet(tmp_path / "test.parquet", ROWS)
    whole = (tmp_path / "test.parquet").read_bytes()
    for data in (b"", b"no", whole[:-20], whole[:4] + b"\xff" * 60 + whole[64:]):
        (tmp_path / "test.parquet").write_bytes(data)
        with pytest.raises(UserError, match=r"test\.parquet cannot be read as Parquet, after row 0: "):
            DataFolder(str(tmp_path), **COLUMNS).examples("test")
    table = pyarrow.table([["a"], ["b"]], names=["source", "source"])
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(UserError, match=r"test\.parquet: a column is there twice; got source, source"):
        DataFolder(str(tmp_path)).examples("test")


def test_several_files_for_a_split_are_refused_and_a_missing_one_lists_what_is_there(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "dev.csv.gz").touch()
    with pytest.raises(FileNotFoundError, match=r"No file .*/test\.jsonl \(or .*\); data files .*: dev\.csv\.gz$"):
        DataFolder(str(tmp_path)).examples("test")
    (tmp_path / "test.csv").touch()
    (tmp_path / "test.jsonl").touch()
    with pytest.raises(UserError, match=r"holds several files for the test split, test\.csv, test\.jsonl: leave one"):
        DataFolder(str(tmp_path)).examples("test")
    for name in ("train-0-of-2.csv", "train-1-of-2.json"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"holds parts of the train split of several kinds: train-0-of-2\.csv, train-1"):
        DataFolder(str(tmp_path)).examples("train")


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n"])
def test_a_delimiter_is_one_character(delimiter):
    with pytest.raises(UserError, match=r"delimiter=.*: expected one character, such as ';' or '\\t'"):
        DataFolder("x", delimiter=delimiter)


def test_no_column_of_references_is_an_error():
    with pytest.raises(UserError, match="reference_columns is empty: expected the name of one column or more"):
        DataFolder("x", reference_columns=[])


@pytest.mark.parametrize(
    ("flags", "table"),
    [
        (["--data.reference_columns=r1", "--data.delimiter=;"], "source;r1;r2\na;b;c\n"),
        (["--data.reference_columns=[r1,r2]", r"--data.delimiter=\t"], "source\tr1\tr2\na\tb\tc\n"),
    ],
)
def test_the_command_line_names_the_columns(tmp_path, flags, table):
    (tmp_path / "test.csv").write_text(table)
    parser = ArgumentParser()
    parser.add_argument("--data", type=GenerationDataModule)
    parser.set_defaults({"data": {"class_path": "hsdlab.data.DataFolder"}})  # so --data.folder alone is understood
    data = parser.instantiate(parser.parse_args([f"--data.folder={tmp_path}", *flags])).data
    assert type(data) is DataFolder
    assert data.examples("test")[0].references == (("b",) if len(data.reference_columns) == 1 else ("b", "c"))


def test_a_data_set_of_several_rows_of_one_source_says_nothing_when_grouped(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text_of(tmp_path, "source,reference\na,b\na,c\n", group_column="source").examples("test")
