"""A run does not go on with another version of the user's own code, nor removes what it reads."""

import json
import sys

import pytest

from hsdlab import HSD
from hsdlab.cli import main
from hsdlab.runs.own_code import own_code
from tests.tiny_runs import options, read_records, run

MINE = """
from hsdlab import ScheduledStrategy

class Mine(ScheduledStrategy):
    def layers_at(self, step, num_layers, max_steps):
        return {layers}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a strategy of the user's own, as a new process would import it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(layers):
        (tmp_path / "own_code_of_a_user.py").write_text(MINE.format(layers=layers))
        sys.modules.pop("own_code_of_a_user", None)

    yield write
    sys.modules.pop("own_code_of_a_user", None)


def refused(capsys, *args):
    with pytest.raises(SystemExit) as end:
        main(list(args))
    return f"{end.value.code} {capsys.readouterr().err}"


def test_another_version_of_an_own_strategy_is_refused(module, tmp_path, monkeypatch, capsys):
    args = ["test", *options(tmp_path), "--skip=own_code_of_a_user.Mine", f"--output={tmp_path / 'out'}"]
    module([0, 1])
    run(monkeypatch, *args)
    noted = json.loads((tmp_path / "out/run.json").read_text())["own_code"]
    assert list(noted) == ["own_code_of_a_user.Mine"]
    run(monkeypatch, *args)  # the same goes on
    module([0])
    assert "classes of your own or the files that options name (own_code_of_a_user.Mine)" in refused(capsys, *args)


def test_files_that_options_name_are_noted_and_installed_classes_are_not(tmp_path):
    file = tmp_path / "classifier.safetensors"
    file.write_bytes(b"1")
    before = own_code([HSD()], {"skip": {"init_args": {"classifier": str(file), "measure": "classifier"}}})
    assert list(before) == [str(file)]
    file.write_bytes(b"2")
    assert own_code([], {"skip": [str(file)]}) != before


def test_overwrite_does_not_remove_what_the_run_reads(tmp_path, monkeypatch, capsys):
    given = options(tmp_path)
    out = f"--output={tmp_path / 'out'}"
    run(monkeypatch, "predict", *given, out)
    before = (tmp_path / "out/predictions.jsonl").read_bytes()
    reads = f"--skip={{class_path: CALM, init_args: {{measure: classifier, classifier: {tmp_path / 'out/run.json'}}}}}"
    said = refused(capsys, "test", *given, reads, out, "--overwrite")
    assert "lies in the output folder" in said
    assert (tmp_path / "out/predictions.jsonl").read_bytes() == before


def test_predictions_that_vanish_in_the_run_are_an_error(module, tmp_path, monkeypatch, capsys):
    removes = MINE.format(layers="[0]").replace(
        "return", f"__import__('pathlib').Path({str(tmp_path / 'out/predictions.jsonl')!r}).unlink(True); return"
    )
    module([0])
    (tmp_path / "own_code_of_a_user.py").write_text(removes)
    args = ["test", *options(tmp_path), "--skip=own_code_of_a_user.Mine", f"--output={tmp_path / 'out'}"]
    assert "something else has removed or changed it" in refused(capsys, *args)
    assert not (tmp_path / "out/result.json").exists()
    module([0])
    assert len(read_records(tmp_path / "out/predictions.jsonl")) < 5


@pytest.mark.slow
def test_report_does_not_replace_a_run_or_files_of_others(tmp_path, monkeypatch, capsys):
    given = options(tmp_path)
    for name in ("a", "b"):
        run(monkeypatch, "test", *given, f"--output={tmp_path / name}")
    both = [str(tmp_path / "a"), str(tmp_path / "b")]
    for output in ("a", "data"):
        assert "Give a new folder" in refused(capsys, "report", *both, f"--output={tmp_path / output}")
    for _ in range(2):  # its own it replaces
        main(["report", *both, f"--output={tmp_path / 'joined'}"])
    assert (tmp_path / "joined/comparison.json").exists()
