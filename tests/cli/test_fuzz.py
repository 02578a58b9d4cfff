"""Random data files, configs and run folders: each is taken, or refused in a sentence; nothing else is raised."""

import contextlib
import json
import shutil
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsdlab.cli.evaluate import main
from hsdlab.data import DataFolder
from hsdlab.errors import UserError
from hsdlab.runs.report import report
from tests.tiny_runs import ParseOnly, options

RANDOM = settings(
    deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=6), each, max_size=3),
    max_leaves=8,
)
RECORDS = st.dictionaries(st.sampled_from(["id", "source", "references", "x"]), JSON, max_size=4)
KEYS = st.sampled_from(
    [
        "model",
        "data",
        "skip",
        "trainer",
        "output",
        "seed_everything",
        "class_path",
        "init_args",
        "name",
        "num_beams",
        "x",
    ]
)
TREES = st.dictionaries(KEYS, st.recursive(JSON, lambda each: st.dictionaries(KEYS, each, max_size=3)), max_size=4)


@RANDOM
@given(content=st.binary(max_size=60) | st.lists(RECORDS | JSON, max_size=3))
def test_any_data_file(content, tmp_path):
    lines = content if isinstance(content, bytes) else "\n".join(json.dumps(each) for each in content).encode()
    (tmp_path / "test.jsonl").write_bytes(lines)
    with contextlib.suppress(UserError):
        DataFolder(str(tmp_path)).examples("test")


@RANDOM
@given(content=TREES | st.binary(max_size=60))
def test_any_config(content, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    (tmp_path / "any.yaml").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    code = 2
    with contextlib.suppress(UserError):
        try:
            ParseOnly(["test", "--model.name=x", "--data=Docstrings", f"--config={tmp_path / 'any.yaml'}"])
        except SystemExit as end:
            code = end.code
    assert code == 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    words = options(folder)
    main(["test", *words, f"--output={folder / 'run'}"])
    return folder / "run", words


@pytest.mark.slow
@settings(RANDOM, max_examples=15)  # each reports or resumes a run
@given(file=st.sampled_from(["run.json", "result.json", "predictions.jsonl"]), data=st.data())
def test_any_damage_of_a_run(file, data, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    run, words = finished
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder)
    whole = (folder / file).read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    (folder / file).write_bytes(
        whole[:start] + data.draw(st.binary(max_size=9)) + whole[start + data.draw(st.integers(0, 9)) :]
    )
    with contextlib.suppress(UserError, OSError):
        report([folder])
    code: object = 2
    try:
        main(["test", *words, f"--output={folder}"])
    except SystemExit as end:
        code = end.code
    assert code == 2 or str(code).startswith("error: ")
