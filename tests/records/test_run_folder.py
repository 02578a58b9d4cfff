"""Whose files are in an output folder: what a run wrote goes with --overwrite, and nothing else, also after kills."""

import os
import re

import pytest

from hsdlab.errors import RunError
from hsdlab.records.files import append_whole, replace_file
from hsdlab.records.manifest import Manifest
from hsdlab.records.provenance import run_info
from hsdlab.records.run_folder import RunFolder, held

CONFIG = {"model": {"name": "m", "num_beams": 1}}


def names(folder):
    return sorted(
        each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file() or each.is_symlink()
    )


def folder(path, overwrite=False, subcommand="test", config=CONFIG):
    return RunFolder(path, subcommand, config, overwrite)


def ran(path, *files, **options):
    """Run something that writes these files."""
    run = folder(path, **options)
    run.check(can_resume=True)
    run.open(run_info(0, run.config, run.subcommand))
    for name in files:
        replace_file(path / name, "ours")
    run.release()


def test_overwrite_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    ran(out, "predictions.jsonl", "tensorboard/HSD/events.out.tfevents.1", "report.md")
    mine = ["notes.txt", "predictions_gold.jsonl", "tensorboard/HSD/notes.txt", "comparison.md", "model/config.json"]
    for name in mine:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    (out / "link").symlink_to(tmp_path)
    ran(out, overwrite=True)
    assert names(out) == sorted([*mine, "link", "run.json", "config.yaml", ".hsdlab.written"])
    assert {(out / name).read_text() for name in mine} == {"mine"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["config.yaml", "predictions.jsonl", "run.json", "a/b"])
def test_a_folder_that_no_run_wrote_is_refused(name, overwrite, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises((FileExistsError, RunError)) as error:
        folder(tmp_path, overwrite).check(can_resume=True)
    if overwrite or name != "run.json":
        assert f"no run of hsdlab wrote what is in it ({name})" in str(error.value)
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["link", "link/x"])
def test_a_link_to_nothing_is_refused(name, tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=r"link is a symbolic link to nowhere, where there is nothing\. Make"):
        folder(tmp_path / name)
    (tmp_path / "nowhere").mkdir()
    assert not folder(tmp_path / name).check(can_resume=True)


def test_files_of_others_are_not_counted(tmp_path, monkeypatch):
    """A folder may be a whole disk; a run's own folder is read to its end."""
    for number in range(9):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/x").touch()
    walked, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda top: (walked.append(each[0]) or each for each in walk(top)))
    with pytest.raises(FileExistsError, match=re.escape("(0/x, 1/x, 2/x and more)")):
        folder(tmp_path).check(can_resume=True)
    assert not folder(tmp_path).has_results()
    assert len(walked) == 5


def test_no_file_of_others_is_replaced_or_read_as_the_runs_own(tmp_path):
    ran(tmp_path, "result.json")
    run = folder(tmp_path)
    assert run.check(can_resume=True)
    (tmp_path / "comparison.md").write_text("mine")
    run.open(run_info())
    with pytest.raises(RunError, match=r"comparison\.md is there, and no run of hsdlab wrote it: move it away"):
        replace_file(tmp_path / "comparison.md", "ours")
    replace_file(tmp_path / "result.json", "ours, later")
    run.release()
    replace_file(tmp_path / "comparison.md", "by the user again")
    (tmp_path / "predictions.jsonl").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds predictions\.jsonl, which no run of hsdlab wrote and this one"):
        folder(tmp_path, overwrite=True).check(can_resume=True)


def test_no_path_out_of_the_folder_is_removed(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    ran(out, "predictions/01_A.jsonl", "link")
    for path in (elsewhere / "01_A.jsonl", elsewhere / "kept"):
        path.write_text("mine")
    (out / "link").unlink()
    (out / "link").symlink_to(elsewhere / "kept")
    (out / ".hsdlab.written").write_text(
        (out / ".hsdlab.written").read_text() + f"file ../elsewhere/kept\nfile {elsewhere / 'kept'}\nopen ../\nopen /\n"
    )
    ran(out, "predictions/01_A.jsonl", overwrite=True)
    assert names(out) == [".hsdlab.written", "config.yaml", "predictions/01_A.jsonl", "run.json"]
    (out / "predictions" / "01_A.jsonl").unlink()
    (out / "predictions").rmdir()
    (out / "predictions").symlink_to(elsewhere)
    with pytest.raises(FileExistsError, match=r"holds predictions/01_A\.jsonl, which no run of hsdlab wrote"):
        ran(out, overwrite=True)
    with pytest.raises(RunError, match=r"01_A\.jsonl lies outside .*, behind a symbolic link: remove it yourself"):
        Manifest(out).remove()
    (out / "predictions").unlink()
    ran(out, overwrite=True)
    assert names(elsewhere) == ["01_A.jsonl", "kept"]
    assert names(out) == [".hsdlab.written", "config.yaml", "run.json"]


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_list_of_all_that_was_written(tmp_path):
    """The process ends before each step on the disk: --overwrite then leaves the user's file, and nothing of ours."""
    step = 0
    while True:
        path = tmp_path / str(step)
        ran(path, "predictions/1.jsonl", "b.md")
        (path / "mine.md").write_text("mine")
        left = step

        def kill(function):
            def call(*args, **options):
                nonlocal left
                if left == 0:
                    os._exit(9)
                left -= 1
                return function(*args, **options)

            return call

        pid = os.fork()
        if pid == 0:
            for name in ("fsync", "replace", "unlink", "rmdir", "link"):
                setattr(os, name, kill(getattr(os, name)))
            ran(path, "predictions/1.jsonl", "a.md", overwrite=True)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        ran(path, overwrite=True)
        assert names(path) == [".hsdlab.written", "config.yaml", "mine.md", "run.json"], step
        if code == 0:
            break
        step += 1
    assert step > 15


def test_in_folders_of_other_libraries_all_is_the_runs_own_but_what_was_there(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine").write_text("mine")
    manifest = Manifest(tmp_path)
    manifest.open(["logs", "model"])
    (tmp_path / "logs" / "events").write_text("theirs")
    assert Manifest(tmp_path).files() == (["logs/events"], ["logs/mine"])  # after a kill
    manifest.close()
    (tmp_path / "logs" / "later").write_text("mine")
    assert Manifest(tmp_path).files() == manifest.files() == (["logs/events"], ["logs/later", "logs/mine"])
    manifest.remove()
    assert names(tmp_path) == [".hsdlab.written", "logs/later", "logs/mine"]


def test_a_folder_of_before_there_were_lists_is_gone_on_with_and_overwritten(tmp_path):
    def old():
        ran(tmp_path, "predictions.jsonl", "result.json", overwrite=(tmp_path / "run.json").exists())
        (tmp_path / ".hsdlab.written").unlink()
        (tmp_path / "predictions_gold.jsonl").write_text("mine")

    old()
    assert folder(tmp_path).check(can_resume=True)
    ran(tmp_path)
    assert Manifest(tmp_path).files()[1] == ["predictions_gold.jsonl"]
    old()
    ran(tmp_path, overwrite=True)
    assert names(tmp_path) == [".hsdlab.written", "config.yaml", "predictions_gold.jsonl", "run.json"]


def test_a_start_without_a_result_is_not_in_the_way(tmp_path):
    ran(tmp_path)
    (tmp_path / ".run.json.1.unfinished").write_text("half")
    other = {"model": {"name": "other"}}
    assert not folder(tmp_path, config=other).check(can_resume=True)
    ran(tmp_path, "result.json", config=other)
    assert names(tmp_path) == [".hsdlab.written", "config.yaml", "result.json", "run.json"]
    with pytest.raises(FileExistsError, match=r"model\.num_beams: nothing then, 1 now"):
        folder(tmp_path).check(can_resume=True)


def test_a_start_that_failed_leaves_nothing(tmp_path):
    out = tmp_path / "a" / "b" / "out"
    run = folder(out)
    run.check(can_resume=True)
    run.open(run_info())
    run.abandon()
    run.release()
    assert not any(tmp_path.iterdir())
    ran(out, "result.json")
    run = folder(out)
    run.check(can_resume=True)
    run.open(run_info())
    run.abandon()  # what was there when it began stays
    run.release()
    assert (out / "result.json").exists()


def test_results_of_other_processes_of_the_run_are_results(tmp_path):
    first, second = folder(tmp_path / "out"), RunFolder(tmp_path / "out", "test", CONFIG, False, is_first=False)
    assert not first.check(can_resume=True)
    first.open(run_info())
    second.open(run_info())
    Manifest(tmp_path / "out").note(tmp_path / "out" / "predictions.rank1.jsonl", is_first=False)
    (tmp_path / "out" / "predictions.rank1.jsonl").write_text("")
    assert first.has_results()
    first.abandon(first.has_results())
    second.release()
    first.release()
    assert (tmp_path / "out" / "predictions.rank1.jsonl").exists()


def test_a_start_that_failed_among_files_of_the_user_is_not_in_the_way_either(tmp_path):
    ran(tmp_path, "result.json")
    (tmp_path / "mine").write_text("mine")
    run = folder(tmp_path, overwrite=True)
    run.check(can_resume=True)
    run.open(run_info())
    run.abandon()
    run.release()
    assert names(tmp_path) == [".hsdlab.written", "mine"]
    ran(tmp_path, "result.json")


def test_results_without_a_run_json_are_kept(tmp_path):
    ran(tmp_path, "result.json")
    (tmp_path / "run.json").unlink()
    with pytest.raises(FileExistsError, match="is not empty"):
        folder(tmp_path).check(can_resume=True)


def test_what_another_command_wrote_since_the_check_is_noticed(tmp_path):
    slow = folder(tmp_path / "out")
    slow.check(can_resume=True)
    ran(tmp_path / "out", "result.json")
    with pytest.raises(RunError, match="Another command has written into the output folder"):
        slow.open(run_info())
    slow.release()
    assert (tmp_path / "out" / "result.json").read_text() == "ours"


def test_functions_list_what_they_write_but_in_a_folder_of_the_users(tmp_path):
    with held(tmp_path / "new"):
        append_whole(tmp_path / "new" / "a.jsonl", b"")
    assert Manifest(tmp_path / "new").files() == (["a.jsonl"], [])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.jsonl").write_text("mine")
    with held(tmp_path / "mine"):
        replace_file(tmp_path / "mine" / "comparison.md", "")
    assert names(tmp_path / "mine") == ["a.jsonl", "comparison.md"]
