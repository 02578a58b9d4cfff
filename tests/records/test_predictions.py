"""Prediction files: what a kill leaves is read back, and the files of several processes become one."""

import json
from dataclasses import replace

import pytest

from hsdlab.costs import Cost
from hsdlab.errors import RunError, UserError
from hsdlab.records.example import Batch, ExampleRecord, batch_costs
from hsdlab.records.predictions import PredictionFile, check_same_examples


def batch(number, rows=2):
    return [
        ExampleRecord(
            id=f"{number}-{row}",
            prediction="c",
            source="a\u2028b",  # a line break for str.splitlines, not for JSON Lines
            references=("é",),
            new_tokens=1,
            average_layers=None,
            batch=Batch(number, rows, Cost(num_layers=4, flops=10.0 * number)),
        )
        for row in range(rows)
    ]


def ids(records):
    return [record.id for record in records]


def written(path, *numbers, **options):
    file = PredictionFile(path, **options)
    for number in numbers:
        file.append(batch(number))
    return file


def test_what_is_appended_is_read_back(tmp_path):
    path = tmp_path / "new" / "predictions.jsonl"
    assert written(path).read() == {}
    file = written(path, 0, 1)
    assert file.read() == {0: batch(0), 1: batch(1)}
    assert file.records() == batch(0) + batch(1)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [(line["id"], line["source"], line["references"]) for line in lines] == [
        (name, "a\u2028b", ["é"]) for name in ("0-0", "0-1", "1-0", "1-1")
    ]
    assert [line["batch"]["cost"]["flops"] for line in lines] == [0, 0, 10, 10]


def test_records_are_in_the_order_of_the_data_whatever_batches_they_were_decoded_in(tmp_path):
    places = {0: (1, 3), 1: (0, 2)}
    batches = {n: [replace(r, position=p) for r, p in zip(batch(n), places[n], strict=True)] for n in (0, 1)}
    file = PredictionFile(tmp_path / "predictions.jsonl")
    for records in batches.values():
        file.append(records)
    assert ids(file.records()) == ["1-0", "0-0", "1-1", "0-1"]
    file.merge()
    lines = file.path.read_bytes().split(b"\n")[:-1]
    assert [ExampleRecord.from_line(line).position for line in lines] == [0, 1, 2, 3]
    assert file.read() == batches  # a run can go on from it
    written_at = file.path.stat().st_mtime_ns
    file.merge()
    assert file.path.stat().st_mtime_ns == written_at


def test_whatever_a_kill_cuts_off_the_whole_batches_stay(tmp_path):
    path = tmp_path / "predictions.jsonl"
    written(path, 0)
    first = path.stat().st_size
    written(path, 1)
    content = path.read_bytes()
    for length in sorted({*range(0, len(content), 97), first - 1, first, first + 1, len(content) - 1, len(content)}):
        path.write_bytes(content[:length])
        whole = (length >= first) + (length == len(content))
        assert PredictionFile(path).read() == {number: batch(number) for number in range(whole)}
        assert path.read_bytes() == (b"", content[:first], content)[whole]
        PredictionFile(path).append(batch(2))
        assert sorted(PredictionFile(path).read()) == [*range(whole), 2]


def test_the_processes_files_become_one_in_order(tmp_path):
    path = tmp_path / "predictions.jsonl"
    first = written(path, 0, 2, 4, rank=0, world_size=2)
    second = written(path, 1, 3, rank=1, world_size=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["predictions.rank0.jsonl", "predictions.rank1.jsonl"]
    assert first.read() == second.read() == {number: batch(number) for number in range(5)}
    first.merge()
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.jsonl"]
    assert path.read_bytes() == written(tmp_path / "alone.jsonl", 0, 1, 2, 3, 4).path.read_bytes()
    first.merge()
    assert first.records() == [record for number in range(5) for record in batch(number)]


def test_a_merge_that_was_killed_is_done_again(tmp_path):
    path = tmp_path / "predictions.jsonl"
    first = written(path, 0, rank=0, world_size=2)
    written(path, 1, rank=1, world_size=2)
    left = first.own.read_bytes()
    first.merge()
    content = path.read_bytes()
    first.own.write_bytes(left)  # as if it had not been removed yet
    first.merge()
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_a_single_process_goes_on_with_what_several_left(tmp_path):
    path = tmp_path / "predictions.jsonl"
    written(path, 0, 2, rank=0, world_size=2)
    torn = written(path, 1, rank=1, world_size=2)
    torn.own.write_bytes(torn.own.read_bytes()[:-1])
    alone = PredictionFile(path)
    assert sorted(alone.read()) == [0, 2]
    alone.append(batch(1))
    alone.merge()
    assert ids(alone.records()) == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_clear_removes_all_files_of_the_run_and_no_other(tmp_path):
    path = tmp_path / "01_A.jsonl"
    file = written(path, 0)
    written(path, 1, rank=5, world_size=8)
    written(tmp_path / "01_AB.jsonl", 0)
    file.clear()
    assert [file.name for file in tmp_path.iterdir()] == ["01_AB.jsonl"]
    assert file.read() == {}


@pytest.mark.parametrize("line", ["{", "[]", '{"id": "x"}', '{"batch": {"number": 1}}'])
def test_a_line_that_is_no_record_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "predictions.jsonl"
    written(path, 0)
    path.write_bytes(path.read_bytes() + line.encode() + b"\n")
    with pytest.raises(RunError, match=r"predictions\.jsonl, line 3: expected a prediction with the number"):
        PredictionFile(path).read()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"prediction": "c"', b'"prediction": "d"'),
        (b'"number": 1', b'"number": 7'),
        (b'"rows": 2', b'"rows": 1'),
        (b'"scores": {}', b'"scores": {"rougeL": 1.0}'),
        (b'"hash": "', b'"hash": "0'),
    ],
    ids=lambda part: part.decode(),
)
def test_a_line_that_was_changed_is_refused_with_its_number_and_the_cure(old, new, tmp_path):
    file = written(tmp_path / "predictions.jsonl", 0, 1)
    *lines, _ = file.path.read_bytes().split(b"\n")
    assert old in lines[2]
    file.path.write_bytes(b"\n".join([*lines[:2], lines[2].replace(old, new, 1), lines[3], b""]))
    before = file.path.read_bytes()
    for read in (file.read, file.records):
        with pytest.raises(RunError, match=r"predictions\.jsonl, line 3: the prediction was changed .*--overwrite"):
            read()
    assert file.path.read_bytes() == before


def test_the_same_content_written_otherwise_is_the_same(tmp_path):
    file = written(tmp_path / "predictions.jsonl", 0)
    lines = [json.loads(line) for line in file.path.read_bytes().splitlines()]
    file.path.write_text("".join(json.dumps(dict(reversed(line.items()))) + "\n" for line in lines))
    assert file.records() == batch(0)


def test_lines_of_before_they_had_a_hash_are_read_and_go_on(tmp_path):
    file = written(tmp_path / "predictions.jsonl", 0)
    lines = [json.loads(line) for line in file.path.read_bytes().splitlines()]
    hashes = [line.pop("hash") for line in lines]
    assert len({*hashes}) == 2
    file.path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    assert file.records() == batch(0)
    file.append(batch(1))
    assert file.read() == {0: batch(0), 1: batch(1)}
    assert [json.loads(line)["hash"] for line in file.path.read_bytes().splitlines()][:2] == hashes


def test_each_batch_costs_once():
    assert [cost.flops for cost in batch_costs(batch(3) + batch(1))] == [30.0, 10.0]


def test_other_examples_are_refused():
    examples = [("0-0", "a\u2028b", ("é",)), ("0-1", "a\u2028b", ("é",))]
    check_same_examples(batch(0), examples)
    for other, named in (
        ([examples[0], ("0-1", "b", ("é",))], "0-1"),
        ([("0-0", "a\u2028b", ("é", "x")), examples[1]], "0-0"),
        (examples[1:], "0-0"),
        ([*examples, ("0-2", "", ("",))], "0-2"),
    ):
        with pytest.raises(UserError, match=f"example '{named}' has other texts"):
            check_same_examples(batch(0), other)
