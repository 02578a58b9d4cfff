"""Official files in, JSON Lines out: fetched from a server on the loopback address, or taken from a folder."""

import dataclasses
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from hsdlab.data import JSONLines
from hsdlab.data.prepare import OFFICIAL_SETS, OfficialFile, download, main, prepare, read, write
from hsdlab.data.prepare.download import fetched
from hsdlab.data.prepare.examples import drawn, held_back
from hsdlab.errors import RunError, UserError

E2E = {
    "trainset.csv": (
        '\ufeffmr,ref\n"name[A], food[X]",A  serves X. \n"name[B]","It is ""B""."\n"name[A], food[X]",X at A.\n'
    ),
    "devset.csv": "mr,ref\nname[C],C.\n",
    "testset_w_refs.csv": '\ufeff"mr","ref"\n"name[D], near[Café]","D, near\nCafé."\n',
}
PREPARED = Path(os.environ.get("HSDLAB_DATA", "/nowhere"))
ORIGINALS = Path(os.environ.get("HSDLAB_OFFICIAL", "/nowhere"))


def sha256(text):
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def e2e(server, monkeypatch, tmp_path):
    """E2E's three files on the server, with their own hashes; the cache and the current folder are empty."""
    server.files = {name: text.encode() for name, text in E2E.items()}
    files = tuple(OfficialFile(f"{server.address}/{name}", sha256(text), None) for name, text in E2E.items())
    for name in ("e2e_nlg", "e2e_nlg_full"):
        monkeypatch.setitem(OFFICIAL_SETS, name, dataclasses.replace(OFFICIAL_SETS[name], files=files))
    monkeypatch.setenv("HSDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HSDLAB_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return server


def test_the_files_are_fetched_and_written_as_the_configs_read_them(e2e, tmp_path):
    made = prepare("e2e_nlg")
    assert made.examples == {"train": 2, "validation": 1, "test": 1}
    assert (tmp_path / "data/e2e_nlg/train.jsonl").read_bytes() == (
        b'{"id": "e2e_nlg-train-00000", "source": "name[A], food[X]", "references": ["A serves X.", "X at A."]}\n'
        b'{"id": "e2e_nlg-train-00001", "source": "name[B]", "references": ["It is \\"B\\"."]}\n'
    )
    assert (tmp_path / "data/e2e_nlg/test.jsonl").read_text(encoding="utf-8") == (
        '{"id": "e2e_nlg-test-00000", "source": "name[D], near[Café]", "references": ["D, near Café."]}\n'
    )
    assert JSONLines("data/e2e_nlg").examples("test")[0].references == ("D, near Café.",)
    note = json.loads((tmp_path / "data/e2e_nlg/prepared.json").read_text(encoding="utf-8"))
    assert note["files"]["devset.csv"] == {"address": f"{e2e.address}/devset.csv", "sha256": sha256(E2E["devset.csv"])}
    assert note["examples"] == made.examples
    assert prepare("e2e_nlg").unchanged
    assert len(e2e.asked) == 3  # nothing is fetched again


def test_the_environment_names_the_folder(e2e, tmp_path, monkeypatch):
    monkeypatch.setenv("HSDLAB_DATA", str(tmp_path / "elsewhere"))
    assert prepare("e2e_nlg").folder == tmp_path / "elsewhere/e2e_nlg"
    assert JSONLines("data/e2e_nlg").examples("validation")[0].source == "name[C]"


def test_a_download_that_broke_off_goes_on(e2e, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CHUNK_BYTES", 10)
    e2e.break_after = 25
    with pytest.raises(RunError, match=r"trainset.csv cannot be fetched \(.*the same command resumes"):
        prepare("e2e_nlg")
    assert list(tmp_path.rglob("*.jsonl")) == []
    e2e.break_after = None
    e2e.asked.clear()
    assert prepare("e2e_nlg").examples["train"] == 2
    assert e2e.asked[0] == ("trainset.csv", "bytes=20-")


def test_a_server_that_knows_no_ranges_sends_all_again(e2e, monkeypatch):
    monkeypatch.setattr(download, "CHUNK_BYTES", 10)
    e2e.break_after, e2e.takes_ranges = 25, False
    with pytest.raises(RunError):
        prepare("e2e_nlg")
    e2e.break_after = None
    assert prepare("e2e_nlg").examples["train"] == 2


def test_another_file_is_refused_with_both_hashes_and_removed(e2e, tmp_path):
    e2e.files["devset.csv"] += b"name[E],E.\n"
    with pytest.raises(RunError) as refused:
        prepare("e2e_nlg")
    assert f"SHA-256 is {sha256(e2e.files['devset.csv'])}, expected {sha256(E2E['devset.csv'])}" in str(refused.value)
    assert not list((tmp_path / "cache").rglob("devset.csv*"))
    e2e.files["devset.csv"] = E2E["devset.csv"].encode()
    assert prepare("e2e_nlg").examples["validation"] == 1


def test_a_damaged_file_in_the_cache_is_fetched_again(e2e, tmp_path):
    prepare("e2e_nlg")
    (path,) = (tmp_path / "cache").rglob("testset_w_refs.csv")
    path.write_text("cut", encoding="utf-8")
    prepare("e2e_nlg", output=tmp_path / "again")
    assert path.read_text(encoding="utf-8") == E2E["testset_w_refs.csv"]


def test_a_server_without_the_file_and_no_server_are_one_sentence(e2e, tmp_path):
    del e2e.files["trainset.csv"]
    with pytest.raises(RunError, match="the server says 404"):
        prepare("e2e_nlg")
    with pytest.raises(RunError, match=r"cannot be fetched \(no connection\).*--from"):
        fetched(OfficialFile("http://127.0.0.1:9/a.csv", None, None), tmp_path / "cache")


def test_an_unknown_hash_is_noted_once_and_holds_from_then_on(server, tmp_path):
    server.files["a.csv"] = b"one"
    file = OfficialFile(f"{server.address}/a.csv", None, None)
    path = fetched(file, tmp_path)
    assert (tmp_path / "a.csv.sha256").read_text(encoding="utf-8") == f"{sha256('one')}  a.csv\n"
    path.unlink()
    server.files["a.csv"] = b"two"
    with pytest.raises(RunError, match=f"expected {sha256('one')}"):
        fetched(file, tmp_path)


def test_a_folder_gives_the_splits_that_it_has_files_of(e2e, tmp_path, capsys):
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/testset_w_refs.csv").write_text(E2E["testset_w_refs.csv"], encoding="utf-8", newline="")
    main(["prepare", "e2e_nlg", "--from", "csv", "--output", "out"])
    printed = capsys.readouterr().out
    assert "out: 1 test examples." in printed
    assert "has no trainset.csv, devset.csv: their splits are not written" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["prepared.json", "test.jsonl"]
    assert e2e.asked == []
    (tmp_path / "csv/testset_w_refs.csv").write_text("mr,ref\na,b\n", encoding="utf-8")
    with pytest.raises(RunError, match="is not the official file"):
        main(["e2e_nlg", "--from", "csv", "--output", "out"])
    with pytest.raises(RunError, match="holds none of the official files"):
        main(["e2e_nlg", "--from", "out"])


def test_other_data_is_not_replaced(e2e, tmp_path):
    (tmp_path / "data/e2e_nlg").mkdir(parents=True)
    (tmp_path / "data/e2e_nlg/test.jsonl").write_text("mine\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"holds another test.jsonl: give another folder with --output"):
        prepare("e2e_nlg")
    assert (tmp_path / "data/e2e_nlg/test.jsonl").read_text(encoding="utf-8") == "mine\n"
    assert len(list((tmp_path / "data/e2e_nlg").iterdir())) == 1


def test_an_unknown_set_and_two_sets_in_one_folder_are_refused(e2e):
    with pytest.raises(UserError, match=r"No data set 'e2e'.*e2e_nlg, e2e_nlg_full, common_gen"):
        main(["e2e"])
    with pytest.raises(UserError, match="--output=x is the folder of one data set"):
        main(["e2e_nlg", "common_gen", "--output", "x"])


def test_a_draw_is_in_the_order_of_the_file():
    groups = {str(number): ["r"] for number in range(20)}
    first, last = drawn(groups, 8), held_back(groups, 12)
    assert list(first) == sorted(first, key=int)
    assert set(first) | set(last) == set(groups)
    assert not set(first) & set(last)
    assert list(first) == ["4", "6", "7", "8", "9", "13", "16", "19"]  # as every Python has drawn since 3.2


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def test_xsum_is_read_out_of_its_archive(tmp_path):
    article = (
        "[SN]URL[SN]\nhttp://a\n\n[SN]TITLE[SN]\nT\n\n[SN]FIRST-SENTENCE[SN]\nThe summary.\n\n"
        "[SN]RESTBODY[SN]\nShare this with\nOne.\n\nTwo.\n"
    )
    empty = article.replace("The summary.", "")
    files = {
        read.XSUM_ARCHIVE: archive(
            tmp_path / "a.tar.gz",
            {"b/1.summary": article, "b/2.summary": empty, "b/3.summary": article, "b/x.txt": "no"},
        ),
        read.XSUM_SPLITS: tmp_path / "splits.json",
    }
    files[read.XSUM_SPLITS].write_text(json.dumps({"train": ["2"], "validation": ["1"], "test": []}), encoding="utf-8")
    assert list(read.xsum(files)) == [("validation", "One.\nTwo.", ("The summary.",))]


def test_cnn_dailymail_is_read_out_of_its_archives(tmp_path):
    story = "(CNN) One line\n\nAnother.\n\n@highlight\n\nFirst point\n\n@highlight\n\nSecond!\n"
    name = hashlib.sha1(b"http://a").hexdigest()
    files = {each: tmp_path / each for each in (*read.CNN_ARCHIVES, *read.CNN_LISTS)}
    archive(files["cnn_stories.tgz"], {f"cnn/stories/{name}.story": story, "cnn/stories/0.story": story})
    archive(files["dailymail_stories.tgz"], {})
    for each in read.CNN_LISTS:
        files[each].write_text("http://a\n" if each == "all_test.txt" else "http://b\n", encoding="utf-8")
    assert list(read.cnn_dailymail(files)) == [
        ("test", "(CNN) One line . Another.", ("First point .\nSecond!",)),
    ]


def test_tldr_and_healthcaremagic_are_read(tmp_path):
    post = {"subreddit": "tifu", "title": "T", "post": "P.", "summary": " S. ", "id": "t3"}
    (tmp_path / "valid.jsonl").write_text(json.dumps(post) + "\n", encoding="utf-8")
    assert list(read.reddit_tldr({"valid.jsonl": tmp_path / "valid.jsonl"})) == [
        ("validation", "SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: P.", ("S.",)),
    ]
    from pyarrow import Table, parquet

    rows = {"instruction": ["i", "i"], "input": ["Q?", " "], "output": ["A.", "A."]}
    parquet.write_table(Table.from_pydict(rows), tmp_path / "h.parquet")
    ((split, question, answers),) = read.healthcaremagic({read.HEALTHCAREMAGIC_FILE: tmp_path / "h.parquet"})
    assert (question, answers) == ("Q?", ("A.",))
    assert split == read.split_of("Q?")


def test_concept_sets_stand_in_one_split_and_bad_references_are_left_out(tmp_path):
    texts = {
        "train": ("a b\nb a\nc d\ne f\ng h\n", "1\n2\n3\n4\n\ufffd\n"),
        "valid": ("c d\n", "5\n"),
        "test": ("f e\n", "6\n"),
    }
    files = {}
    for split, sides in texts.items():
        for side, text in zip(("src", "trg"), sides, strict=True):
            files[f"{split}_{side}.txt"] = tmp_path / f"{split}_{side}.txt"
            files[f"{split}_{side}.txt"].write_text(text, encoding="utf-8")
    assert list(read.common_gen(files)) == [
        ("train", "a b", ("1",)),
        ("validation", "c d", ("5",)),
        ("test", "f e", ("6",)),
    ]
    assert [pair[1] for pair in read.common_gen_full(files)] == ["a b", "b a", "c d", "e f", "c d", "f e"]


@pytest.mark.parametrize("name", ["e2e_nlg", "common_gen"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_sets_of_the_results_are_rebuilt_byte_for_byte(name, split, tmp_path):
    """Needs $HSDLAB_DATA with the data of docs/results.md, and in $HSDLAB_OFFICIAL a folder of official files a set."""
    expected, originals = PREPARED / name / f"{split}.jsonl", ORIGINALS / name
    if not expected.is_file() or not originals.is_dir():
        pytest.skip("set HSDLAB_DATA to the prepared sets and HSDLAB_OFFICIAL to the folder of their official files")
    made = prepare(name, from_folder=originals, output=tmp_path)
    if split not in made.examples:
        pytest.skip(f"{originals} lacks {', '.join(made.missing)}")
    assert (tmp_path / f"{split}.jsonl").read_bytes() == expected.read_bytes()


def test_every_file_has_an_address_of_its_own_and_a_hash_or_none():
    for name, official in OFFICIAL_SETS.items():
        assert len({file.name for file in official.files}) == len(official.files), name
        for file in official.files:
            assert file.address.startswith("https://")
            assert file.sha256 is None or len(file.sha256) == 64
    assert set(write.OTHER_NAMES.values()) <= set(OFFICIAL_SETS)
    assert not set(write.OTHER_NAMES) & set(OFFICIAL_SETS)
