"""One holder of a folder at a time, also among processes that are killed and processes that take over at once."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hsdlab.errors import RunError
from hsdlab.records import lock
from hsdlab.records.lock import LOCK_FILE, FolderLock, Owner

ROOT = Path(__file__).parents[2]
fork = multiprocessing.get_context("fork")


def hold(folder, conn):
    """Take the folder in another process, say so, and wait."""
    FolderLock(folder).take()
    conn.send("held")
    time.sleep(100)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/out."""
    here, there = fork.Pipe()
    process = fork.Process(target=hold, args=(tmp_path / "out", there))
    process.start()
    assert here.recv() == "held"
    yield process
    process.kill()
    process.join()


def changed(folder, **fields):
    file = folder / LOCK_FILE
    owner = json.loads(file.read_text()) | fields
    file.write_text(json.dumps(owner))


def test_a_second_process_is_refused_by_name(tmp_path, holder):
    out = FolderLock(tmp_path / "out")
    expected = rf"out is in use by process {holder.pid} on host \S+ since \d{{4}}-\S+ \(python .*\)\. Wait until it has"
    for call in (out.check, out.take):
        with pytest.raises(RunError, match=expected):
            call()
    assert not out.is_held
    out.release()
    assert (tmp_path / "out" / LOCK_FILE).exists()


def test_what_a_killed_process_left_is_taken_over(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    out = FolderLock(tmp_path / "out")
    deadline = time.monotonic() + 10
    while True:  # it is gone as soon as it is dead: nobody waits for it yet
        try:
            out.take()
            break
        except RunError:
            assert time.monotonic() < deadline
    assert out.is_held
    assert json.loads((tmp_path / "out" / LOCK_FILE).read_text())["pid"] == os.getpid()
    out.release()
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("fields", "is_taken"),
    [
        ({"started": "1"}, True),  # the number has gone to another process
        ({"boot": "another"}, True),
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "boot": "another"}, False),
        ({"namespace": "pid:[1]"}, False),  # of another container on this machine
    ],
    ids=str,
)
def test_a_lock_that_is_stale_for_sure_is_taken_over_and_no_other(fields, is_taken, tmp_path, holder):
    changed(tmp_path / "out", **fields)
    out = FolderLock(tmp_path / "out")
    if is_taken:
        out.take()
        assert out.is_held
        return
    with pytest.raises(RunError, match=rf"cannot be seen from here .*: if it does not, remove {out.file}"):
        out.take()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"pid": 1}'])
def test_a_damaged_lock_is_said(content, tmp_path):
    (tmp_path / LOCK_FILE).write_bytes(content)
    with pytest.raises(RunError, match=rf"cannot be read .* remove {tmp_path / LOCK_FILE}"):
        FolderLock(tmp_path).take()


def test_a_process_holds_a_folder_once_and_its_inner_runs_leave_it(tmp_path):
    outer, inner = FolderLock(tmp_path), FolderLock(tmp_path)
    outer.take()
    inner.take()
    inner.release()
    assert (outer.is_held, inner.is_held) == (True, False)
    assert outer.file.exists()
    outer.release()
    assert not any(tmp_path.iterdir())


def race(folder, go, conn):
    """Try to take a folder together with others; tell whether that succeeded, and hold on."""
    taken = FolderLock(folder)
    go.wait()
    try:
        taken.take()
        conn.send(True)
        time.sleep(100)
    except RunError:
        conn.send(False)


@pytest.mark.parametrize("left", [False, True], ids=["free", "stale"])
def test_of_many_at_once_one_gets_it(left, tmp_path):
    for number in range(10):
        folder = tmp_path / str(number)
        if left:
            FolderLock(folder).take()
            changed(folder, started="1")
        go, pipes, processes = fork.Event(), [], []
        for _ in range(4):
            here, there = fork.Pipe()
            process = fork.Process(target=race, args=(folder, go, there))
            process.start()
            pipes.append(here)
            processes.append(process)
        go.set()
        taken = [pipe.recv() for pipe in pipes]
        owner = json.loads((folder / LOCK_FILE).read_text())["pid"]
        for process in processes:
            process.kill()
            process.join()
        assert sum(taken) == 1
        assert processes[taken.index(True)].pid == owner


def test_who_looked_before_another_took_over_does_not_take_that_ones_lock(tmp_path, monkeypatch):
    """Both have seen the same stale lock; the slower one replaces it only if it is still there."""
    FolderLock(tmp_path).take()
    changed(tmp_path, started="1")
    slow = FolderLock(tmp_path)
    looks = slow._stale
    looked = []

    def look():
        found = looks()
        if not looked:
            looked.append(found)
            quick = subprocess.run(
                [sys.executable, "-c", TAKES, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert quick.stdout == "held\n", quick.stderr
            changed(tmp_path, pid=os.getppid(), started=lock._start_of(os.getppid()))  # it still runs
        return found

    monkeypatch.setattr(slow, "_stale", look)
    with pytest.raises(RunError, match=f"in use by process {os.getppid()}"):
        slow.take()
    assert looked == ["stale"]


TAKES = """
import sys
from pathlib import Path
from hsdlab.records.lock import FolderLock
FolderLock(Path(sys.argv[1])).take()
print("held")
"""


def test_without_proc_a_process_is_known_by_its_number(tmp_path, monkeypatch, holder):
    monkeypatch.setattr(lock, "_start_of", lambda pid: None)
    monkeypatch.setattr(lock.Path, "exists", lambda self: False)
    changed(tmp_path / "out", started=None)
    owner = Owner(**json.loads((tmp_path / "out" / LOCK_FILE).read_text()))
    assert not owner.is_gone()
    holder.kill()
    holder.join()
    assert owner.is_gone()
