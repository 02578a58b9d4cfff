"""Files are written whole or not at all, whatever fails, and a fault of writing is one sentence with path and cure."""

import errno
import os

import pytest

from hsdlab.errors import RunError
from hsdlab.records import files
from hsdlab.records.files import append_whole, listening, replace_file, whole_file
from tests.small_disk import small_disk  # noqa: F401  a fixture

SENTENCES = {
    errno.ENOSPC: "no space left on device. Free some",
    errno.EDQUOT: "the quota of the user is used up. Free some space",
    errno.EROFS: "its file system is read-only. Give another folder",
    errno.EACCES: "the permission is missing. Give a folder that you may write to",
    errno.EISDIR: "Is a directory. See that its folder can be written to",
}


def failing(number):
    """A function of the system that fails."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_is_made_with_its_folder_and_replaced(tmp_path):
    file = tmp_path / "new" / "a.txt"
    replace_file(file, "é\n")
    assert file.read_bytes() == b"\xc3\xa9\n"
    replace_file(file, b"b")
    assert [each.read_bytes() for each in file.parent.iterdir()] == [b"b"]


def test_the_file_and_then_its_name_reach_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    replace_file(tmp_path / "a.txt", "a")
    append_whole(tmp_path / "b.txt", b"b")
    append_whole(tmp_path / "b.txt", b"b")
    folder, unfinished = str(tmp_path), str(tmp_path / f".a.txt.{os.getpid()}.unfinished")
    assert synced == [unfinished, folder, str(tmp_path / "b.txt"), folder, str(tmp_path / "b.txt")]


@pytest.mark.parametrize("number", SENTENCES, ids=errno.errorcode.get)
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_what_fails_leaves_the_earlier_file_and_nothing_else(number, function, tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    replace_file(file, "old")
    monkeypatch.setattr(os, function, failing(number))
    with pytest.raises(RunError) as error:
        replace_file(file, "new")
    assert str(error.value).startswith(f"{file} could not be written: {SENTENCES[number]}")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_signal_in_the_middle_leaves_nothing(tmp_path):
    def stopped():
        with whole_file(tmp_path / "a.json") as unfinished:
            unfinished.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not any(tmp_path.iterdir())


def test_a_name_that_is_too_long_is_said(tmp_path):
    with pytest.raises(RunError, match=r"could not be written: its name is too long .* Give a shorter folder or name"):
        replace_file(tmp_path / ("a" * 300), "")
    replace_file(tmp_path / ("é" * 127), "")  # 254 bytes: the name of the unfinished file is no longer than that
    assert [len(os.fsencode(each.name)) for each in tmp_path.iterdir()] == [254]


@pytest.mark.parametrize("written", [0, 3, 5])
def test_an_append_that_fails_in_the_middle_leaves_the_file_as_before(written, tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    append_whole(file, b"one\n")

    class Full:
        def __init__(self, opened):
            self.opened, self.left = opened, written

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.opened.close()

        def __getattr__(self, name):
            return getattr(self.opened, name)

        def write(self, content):
            if not self.left:
                raise OSError(errno.ENOSPC, "full")
            taken = self.opened.write(content[: self.left])
            self.left -= taken
            return taken

    opens = files.Path.open
    monkeypatch.setattr(files.Path, "open", lambda *args, **options: Full(opens(*args, **options)))
    with pytest.raises(RunError, match=r"a\.jsonl could not be written: no space left on device"):
        append_whole(file, b"two and three\n")
    monkeypatch.undo()
    assert file.read_bytes() == b"one\n"
    append_whole(file, b"two\n")
    assert file.read_bytes() == b"one\ntwo\n"


def test_a_listener_is_told_before_a_file_is_there_and_may_refuse_it(tmp_path):
    told = []

    def listener(path):
        told.append((path.name, path.exists()))
        if path.name == "c":
            raise RunError("not this one")

    with listening(listener):
        replace_file(tmp_path / "a", "")
        append_whole(tmp_path / "b", b"1")
        append_whole(tmp_path / "b", b"2")
        for write, content in ((replace_file, ""), (append_whole, b"")):
            with pytest.raises(RunError, match="not this one"):
                write(tmp_path / "c", content)
    replace_file(tmp_path / "d", "")
    assert told == [("a", False), ("b", False), ("c", False), ("c", False)]
    assert not (tmp_path / "c").exists()


def test_on_a_disk_that_fills_up_what_was_written_stays(small_disk):  # noqa: F811
    folder = small_disk(256 * 1024)
    replace_file(folder / "kept.txt", "x" * 100_000)
    with pytest.raises(RunError, match=r"kept\.txt could not be written: no space left"):
        replace_file(folder / "kept.txt", "y" * 200_000)
    assert (folder / "kept.txt").read_text() == "x" * 100_000
    line = b"z" * 4999 + b"\n"
    append_whole(folder / "lines.jsonl", line * 20)
    with pytest.raises(RunError, match=r"lines\.jsonl could not be written: no space left"):
        append_whole(folder / "lines.jsonl", line * 20)
    assert (folder / "lines.jsonl").read_bytes() == line * 20
    assert sorted(each.name for each in folder.iterdir()) == ["kept.txt", "lines.jsonl"]
