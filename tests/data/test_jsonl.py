import json
import re
from pathlib import Path

import pytest

from hsdlab.data import Example, JSONLines
from hsdlab.errors import UserError
from tests.prepared_data import DATA, REASON

GOOD = {
    "id": "toy-0",
    "source": "name[Aromi], area[centre]",
    "references": ["Aromi is central.", "Café Aromi"],
}
CASES = Path(__file__).parents[3] / "shared" / "cases"


def write(folder, *lines, split="test"):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return JSONLines(str(folder))


def test_reads_all_references_in_file_order(tmp_path):
    second = {**GOOD, "id": "toy-1", "source": "line\u2028separator"}
    examples = write(tmp_path, GOOD, json.dumps(second, ensure_ascii=False)).load_examples("test")
    assert examples == [
        Example("toy-0", "name[Aromi], area[centre]", ("Aromi is central.", "Café Aromi")),
        Example("toy-1", "line\u2028separator", ("Aromi is central.", "Café Aromi")),
    ]


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "toy-1", "source"', " is not JSON in UTF-8: Expecting ':' delimiter"),
        ("{} {}", " is not JSON in UTF-8: Extra data"),
        pytest.param("[" * 100_000, " is not JSON in UTF-8: maximum recursion depth exceeded", id="deep"),
        pytest.param("1" * 5000, " is not JSON in UTF-8: Exceeds the limit", id="a long number"),
        ('{"id": "a", "x": {"k": 1, "k": 1}}', ': the key "k" is there twice in one object: leave one of them'),
        ('{"id": "a", "id": "b"}', ': the key "id" is there twice in one object'),
        ('{"a\\ud83d": 1, "a\\ud83d": 2}', r""": the key "'a\ud83d'" is there twice in one object"""),
        ('{"id": "a", "score": NaN}', ": NaN is not JSON: write null, or the text in quotation marks"),
        ('{"id": "a", "source": -Infinity}', ": -Infinity is not JSON: write null"),
        ("null", ": expected a JSON object, got NoneType"),
        ("7", ": expected a JSON object, got int"),
        ('["toy-1"]', ": expected a JSON object, got list"),
        (without("id"), ': no key "id"; got source, references'),
        (without("source"), ': no key "source"; got id, references'),
        (without("references"), ': no key "references"; got id, source'),
        ({**GOOD, "id": 7}, ': "id" has to be a string, got int'),
        ({**GOOD, "id": ""}, ": \"id\" has to hold text, got ''"),
        ({**GOOD, "source": None}, ': "source" has to be a string, got NoneType'),
        ({**GOOD, "source": " \n"}, r""": "source" has to hold text, got ' \n'"""),
        ({**GOOD, "references": "one"}, ': "references" has to be a list of strings, got str'),
        ({**GOOD, "references": []}, ': "references" is empty: expected at least one'),
        ({**GOOD, "references": [["a"]]}, ': each of "references" has to be a string, got list'),
        ({**GOOD, "references": None}, ': "references" has to be a list of strings, got NoneType'),
        (
            {**GOOD, "source": "cut \ud83d"},
            r""": "source" cannot be encoded in UTF-8: its character 5 is '\ud83d', half of a pair""",
        ),
        (
            {**GOOD, "references": ["a", "\udc00"]},
            r""": each of "references" cannot be encoded in UTF-8: its character 1 is '\udc00'""",
        ),
        ({**GOOD, "id": "\udc00"}, r""": "id" cannot be encoded in UTF-8: its character 1 is '\udc00'"""),
        ({**GOOD, "references": ["a", 1]}, ': each of "references" has to be a string, got int'),
        ({**GOOD, "references": ["a", ""]}, ": each of \"references\" has to hold text, got ''"),
        (GOOD, ': id "toy-0" is also that of line 1'),
    ],
)
def test_a_bad_line_is_named_with_file_and_line(tmp_path, line, message):
    data = write(tmp_path, GOOD, line, {**GOOD, "id": "toy-2"})
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/test.jsonl, line 2{message}")) as caught:
        data.load_examples("test")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf8_are_named_with_file_and_line(tmp_path):
    (tmp_path / "test.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"id": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"test\.jsonl, line 2 is not JSON in UTF-8"):
        JSONLines(str(tmp_path)).load_examples("test")


@pytest.mark.parametrize("lines", [[], [""], ["", " \t", "\r"]])
def test_an_empty_file_is_an_error(tmp_path, lines):
    with pytest.raises(ValueError, match=r"test\.jsonl is empty: expected one JSON object a line"):
        write(tmp_path, *lines).load_examples("test")


def test_blank_lines_are_passed_over_and_counted(tmp_path):
    (tmp_path / "test.jsonl").write_bytes(b"\r\n" + json.dumps(GOOD).encode() + b"\r\n\r\n \t\n{}\n\n")
    with pytest.raises(ValueError, match=r'test\.jsonl, line 5: no key "id"; got an empty object'):
        JSONLines(str(tmp_path)).load_examples("test")
    (tmp_path / "test.jsonl").write_bytes(b"\r\n" + json.dumps(GOOD).encode() + b"\r\n\r\n \t\n\n")
    assert [example.id for example in JSONLines(str(tmp_path)).load_examples("test")] == ["toy-0"]


def test_a_file_that_was_cut_short_is_named_with_its_last_line(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:-25])
    with pytest.raises(ValueError, match=r"test\.jsonl, line 2 is not JSON .* Unterminated .* \(column 71\)$"):
        JSONLines(str(tmp_path)).load_examples("test")


@pytest.mark.skipif(not CASES.is_dir(), reason=f"the reported cases are not in {CASES}")
def test_the_reported_cases(tmp_path):
    blank = JSONLines(str(CASES / "blank_lines")).examples("test")
    assert [(each.id, each.source, each.references) for each in blank] == [("1", "a", ("b",)), ("2", "c", ("d",))]
    for name, what in (("source", '"source"'), ("reference", 'each of "references"')):
        (tmp_path / "test.jsonl").write_bytes((CASES / "lone_surrogate" / f"{name}.jsonl").read_bytes())
        with pytest.raises(
            UserError, match=rf"test\.jsonl, line 1: {what} cannot be encoded in UTF-8: its character 11"
        ):
            JSONLines(str(tmp_path)).examples("test")


def test_a_missing_file_lists_what_is_there(tmp_path):
    write(tmp_path, GOOD, split="train")
    data = write(tmp_path, GOOD, split="dev")
    with pytest.raises(FileNotFoundError, match=r"No file .*test\.jsonl; .*: dev\.jsonl, train\.jsonl$"):
        data.load_examples("test")


def test_what_is_no_file_of_the_split_is_missing(tmp_path):
    (tmp_path / "test.jsonl").mkdir()
    with pytest.raises(FileNotFoundError, match=r"No file .*test\.jsonl; data files in .*: none$"):
        JSONLines(str(tmp_path)).load_examples("test")
    file = tmp_path / "train.jsonl"
    file.write_text("{}")
    with pytest.raises(UserError, match=r"train\.jsonl is a file: give the folder that holds test\.jsonl"):
        JSONLines(str(file)).load_examples("test")
    with pytest.raises(UserError, match=r"The folder x{77}\.\.\. cannot be read: File name too long"):
        JSONLines("x" * 5000).load_examples("test")


def test_a_missing_folder_lists_what_is_there(tmp_path):
    (tmp_path / "xsum").mkdir()
    with pytest.raises(FileNotFoundError, match=r"No folder .*xsumm; folders in .*: xsum$"):
        JSONLines(str(tmp_path / "xsumm")).load_examples("test")
    with pytest.raises(FileNotFoundError, match=r"No folder .*/nowhere/a; folders in .*/nowhere: none$"):
        JSONLines(str(tmp_path / "nowhere" / "a")).load_examples("test")


@pytest.mark.skipif(not DATA.is_dir(), reason=REASON)
def test_the_prepared_data_sets_hold_what_their_readme_says():
    table = re.findall(
        r"^\| (\w+) \| (train|validation|test) \| ([\d,]+) \| ([\d,]+) \|",
        (DATA / "README.md").read_text(),
        re.M,
    )
    assert len(table) == 18
    for name, split, examples, references in table:
        loaded = JSONLines(str(DATA / name)).load_examples(split)
        assert len(loaded) == int(examples.replace(",", ""))
        assert sum(len(example.references) for example in loaded) == int(references.replace(",", ""))
