"""Two commands on one output folder, as real processes: one works, the other says which; a kill is no hindrance."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_runs import options, read_records, without_costs, write_examples

ROOT = Path(__file__).parents[2]
EXAMPLES = 40


@pytest.fixture
def command(tmp_path):
    """A `test` of forty examples, slow enough to be met in the middle."""
    tiny = options(tmp_path)
    write_examples(tmp_path / "data", EXAMPLES)
    slow = "--skip={class_path: tests.runs.test_resume.Slow}"
    return ["test", *tiny, "--data.batch_size=1", "--model.num_beams=1", slow, f"--output={tmp_path / 'out'}"]


@pytest.fixture
def start():
    """Start `python evaluate.py`; whatever is left of it ends with the test."""
    processes = []

    def started(args, program="evaluate.py", **variables):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
        process = subprocess.Popen(
            [sys.executable, program, *args],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines(folder):
    file = folder / "predictions.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
def test_two_at_once_decode_each_example_once_and_one_is_refused(command, start, tmp_path):
    both = [start(command), start(command)]
    ends = [process.communicate(timeout=200) for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 1], ends
    error = ends[codes.index(1)][1]
    first = both[codes.index(0)].pid
    assert f"error: The output folder {tmp_path / 'out'} is in use by process {first} on host " in error
    assert "(python evaluate.py test " in error
    assert "Traceback" not in error
    records = read_records(tmp_path / "out" / "predictions.jsonl")
    assert [record["id"] for record in records] == [f"test-{number}" for number in range(EXAMPLES)]
    assert not (tmp_path / "out" / ".hsdlab.lock").exists()


@pytest.mark.slow
def test_a_later_one_is_refused_at_once_and_a_killed_one_is_taken_over(command, start, tmp_path):
    out = tmp_path / "out"
    command = [*command, "--skip.pause_s=2"]
    first = start(command)
    wait_for(lambda: lines(out) >= 3, first)
    second = start([*command, "--model.name=nowhere"])  # before it looks for the model
    _, error = second.communicate(timeout=100)
    assert (second.returncode, "is in use by process" in error) == (1, True), error
    first.send_signal(signal.SIGKILL)
    second = start(command)
    wait_for(lambda: json.loads((out / ".hsdlab.lock").read_text())["pid"] == second.pid, second)
    assert first.returncode is None  # not even waited for
    assert lines(out) < EXAMPLES
    last = start(command)
    _, error = last.communicate(timeout=100)
    assert (last.returncode, "is in use by process" in error) == (1, True), error


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_an_unbroken_one(command, start, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    other = start([*command, f"--output={whole}"])
    for predictions in (1, 5, 17):
        process = start(command)
        wait_for(lambda enough=predictions: lines(out) >= enough, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert (out / ".hsdlab.lock").exists()
    process = start(command)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert other.wait(timeout=200) == 0
    texts = [without_costs(read_records(folder / "predictions.jsonl")) for folder in (out, whole)]
    assert texts[0] == texts[1]
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (out, whole)]
    assert metrics[0]["test/rougeL"] == metrics[1]["test/rougeL"]
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.slow
def test_two_trainings_at_once_do_not_share_checkpoints(command, start, tmp_path):
    (tmp_path / "data" / "train.jsonl").write_bytes((tmp_path / "data" / "test.jsonl").read_bytes())
    kept = [
        option for option in command[1:] if not option.startswith(("--model.num_beams", "--model.metrics", "--skip"))
    ]
    fit = ["fit", *kept, "--trainer.max_epochs=1", "--checkpoint_every=5"]
    fit += ["--trainer.callbacks=tests.cli.test_stops.SlowTraining"]
    both = [start(fit, "train.py"), start(fit, "train.py")]
    ends = [process.communicate(timeout=200) for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], ends
    assert sum("is in use by process" in error for _, error in ends) == 1
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_processes_of_one_run_are_one_holder(command, start, tmp_path):
    both = [*command, "--trainer.devices=2", "--trainer.strategy=ddp"]
    process = start(both)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert lines(tmp_path / "out") == EXAMPLES
    assert not (tmp_path / "out" / ".hsdlab.lock").exists()
    written = (tmp_path / "out" / ".hsdlab.written").read_text().splitlines()
    assert {"file predictions.rank0.jsonl", "file predictions.rank1.jsonl", "file predictions.jsonl"} <= {*written}
