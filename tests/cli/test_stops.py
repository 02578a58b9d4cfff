"""SIGTERM and Ctrl-C: exit code 143 and 130 with the sentence that says how to go on, also of two processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from hsdlab.cli.stops import GRACE_S, Stopped, stopping_at_once
from tests.tiny_runs import options, write_examples

ROOT = Path(__file__).parents[2]
GOES_ON = {
    "test": "The same command resumes it: what has finished is kept.",
    "fit": "There is no checkpoint yet (see --checkpoint_every): the same command with --ckpt_path=last starts over in "
    "{out}.",
    "fit_with_checkpoint": "Resume from the checkpoint in {out}: the same command with --ckpt_path=last.",
}
CODES = {signal.SIGTERM: (143, "SIGTERM"), signal.SIGINT: (130, "Ctrl-C")}


class SlowTraining(Callback):
    """Gives a test the time to stop the training; says in a file that it has begun."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.is_global_zero:
            Path(trainer.default_root_dir, "began").touch()
        time.sleep(0.3)


def command(kind, folder, processes):
    """Write model and data; return the command that decodes them, or trains on them, slowly."""
    tiny = [*options(folder), f"--output={folder / 'out'}", "--data.batch_size=1", f"--trainer.devices={processes}"]
    tiny += ["--trainer.strategy=ddp"] if processes > 1 else []
    write_examples(folder / "data", 60)
    if kind == "test":
        return ["evaluate.py", "test", *tiny, "--skip={class_path: tests.runs.test_resume.Slow}"]
    shutil.copy(folder / "data" / "test.jsonl", folder / "data" / "train.jsonl")
    tiny = [option for option in tiny if not option.startswith(("--model.num_beams", "--model.metrics"))]
    every = 1 if kind == "fit_with_checkpoint" else 100
    slow = "--trainer.callbacks=tests.cli.test_stops.SlowTraining"
    return ["train.py", "fit", *tiny, "--trainer.max_epochs=50", slow, f"--checkpoint_every={every}"]


def began(kind, out):
    if kind == "test":
        return any(file.stat().st_size for file in out.glob("predictions*.jsonl"))
    return (out / ("checkpoints/last.ckpt" if kind == "fit_with_checkpoint" else "began")).exists()


def children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "processes", "by"),
    [
        ("test", 1, signal.SIGTERM),
        ("test", 2, signal.SIGTERM),
        ("test", 2, signal.SIGINT),
        ("fit", 1, signal.SIGTERM),
        ("fit_with_checkpoint", 1, signal.SIGINT),
        ("fit_with_checkpoint", 2, signal.SIGTERM),
        ("fit", 2, signal.SIGINT),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_command_that_is_stopped_says_by_what_and_how_to_go_on(kind, processes, by, tmp_path):
    args = command(kind, tmp_path, processes)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *args], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not began(kind, tmp_path / "out") and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        others = children(process.pid)
        process.send_signal(by)
        sent = time.monotonic()
        error = process.communicate(timeout=60)[1]
        assert time.monotonic() - sent < GRACE_S
    finally:
        process.kill()
    code, name = CODES[by]
    sentence = f"Stopped by {name}. {GOES_ON[kind].format(out=tmp_path / 'out')}"
    assert error.count(sentence) == 1, error
    assert process.returncode == code
    assert "Traceback" not in error
    assert not [pid for pid in others if Path(f"/proc/{pid}").exists()]


def test_the_handlers_of_before_are_back_afterwards():
    before = [signal.getsignal(number) for number in CODES]
    with pytest.raises(Stopped) as end, stopping_at_once():
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143
    assert [signal.getsignal(number) for number in CODES] == before


def test_a_second_signal_does_not_disturb_the_end():
    ended = []

    def stopped_three_times():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            ended.append("table printed")

    with pytest.raises(Stopped) as end, stopping_at_once():
        stopped_three_times()
    assert (end.value.code, ended) == (130, ["table printed"])


@pytest.mark.slow
def test_an_end_that_takes_too_long_is_cut_short():
    script = (
        "import os, signal, time, hsdlab.cli.stops as stops\n"
        "stops.GRACE_S = 0.3\n"
        "with stops.stopping_at_once():\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally: time.sleep(5); print('took its time')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, stdout=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stdout) == (143, b"")


def test_a_forked_process_ends_as_if_nothing_had_been_installed():
    with stopping_at_once():
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
