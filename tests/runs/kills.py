"""Commands that are killed: at a moment of the clock, or in the middle of a chosen write; and what a run leaves behind.

`python -m tests.runs.kills evaluate|train OPTION...` is the command in a process of its own, as two processes need it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hsdlab.cli
import hsdlab.cli.train
from hsdlab.records.lock import LOCK_FILE
from hsdlab.reporting import figures
from tests.blank_pictures import BlankCanvas
from tests.forked import CONTEXT
from tests.tiny_runs import read_records, without_costs

ROOT = Path(__file__).parents[2]
TIMES = ("decode_step_ms", "tokens_per_second", "prompt_ms", "speed_up", "decode_s", "prompt_s", "wall_s")
WRITES = ("replace", "rename", "link", "fsync", "unlink", "remove", "rmdir", "mkdir")
"""The functions of `os` through which whatever is durable goes."""

Fault = Callable[[str, tuple[Any, ...]], None]


PROGRAMS = {"evaluate": hsdlab.cli.main, "train": hsdlab.cli.train.main}


def command(program: str, args: list[str]) -> None:
    """Run `python evaluate.py` or `python train.py` in this process."""
    torch.set_num_threads(1)
    figures.FigureCanvasAgg = BlankCanvas
    sys.argv = [f"{program}.py"]
    PROGRAMS[program](args)


def killed_after(program: str, args: list[str], seconds: float) -> bool:
    """Run a command in a process of its own; kill it after so many seconds, unless it has ended before.

    Returns:
        Whether it was killed.
    """
    process = _process(command, program, args)
    process.join(timeout=seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def two_processes(program: str, args: list[str], seconds: float | None = None) -> int:
    """Run a command in two processes; kill both after so many seconds, or let it end.

    Returns:
        Its exit code, negative for a signal.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    both = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.runs.kills", program, *args, *both],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait(timeout=60)


def with_fault(program: str, args: list[str], folder: Path, fault: Fault) -> int | None:
    """Run a command in a process of its own, in which a fault is called before each write below a folder.

    Args:
        program: evaluate or train.
        args: The command line.
        folder: What is written elsewhere does not count.
        fault: Takes the name of the function and its arguments; a module's function, for it is pickled.

    Returns:
        The exit code, negative for a signal.
    """
    process = _process(_faulty, program, args, folder, fault)
    process.join(timeout=120)
    process.kill()
    return process.exitcode


class Counted:
    """Counts the writes into a file, one letter each."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, name: str, args: tuple[Any, ...]) -> None:
        with self.file.open("a") as file:
            file.write(f"{name}\n")


class KilledAt:
    """Kills the process before its n-th write, counted from 0; of a file that is being written half is lost."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._sizes: dict[int, int] = {}

    def __call__(self, name: str, args: tuple[Any, ...]) -> None:
        status = os.fstat(args[0]) if name == "fsync" else None
        before = self._sizes.get(status.st_ino, 0) if status else 0
        if self.number == 0:
            if status and status.st_size > before:
                os.ftruncate(args[0], (before + status.st_size) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        if status:
            self._sizes[status.st_ino] = status.st_size
        self.number -= 1


class FullAt:
    """Has no space left from the n-th write on, counted from 0; what removes files works."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, name: str, args: tuple[Any, ...]) -> None:
        if self.number <= 0 and name not in ("unlink", "remove", "rmdir"):
            raise OSError(28, "No space left on device")
        self.number -= 1


def errors_of(folder: Path) -> Path:
    """Return the file that holds what a command with a fault wrote to its standard error."""
    return folder.with_name(f"{folder.name}.errors")


def _process(target: Callable[..., None], *args: Any) -> Any:
    process = CONTEXT.Process(target=target, args=args)
    process.start()
    return process


def _faulty(program: str, args: list[str], folder: Path, fault: Fault) -> None:
    errors = os.open(errors_of(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 2)
    for name in WRITES:
        setattr(os, name, _with_fault(getattr(os, name), name, folder, fault))
    command(program, args)


def _with_fault(function: Callable[..., Any], name: str, folder: Path, fault: Fault) -> Callable[..., Any]:
    def faulty(*args: Any, **kwargs: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else os.fspath(args[0])
        made = name == "mkdir" and os.path.isdir(path)
        if Path(path).is_relative_to(folder) and not made:
            fault(name, args)
        return function(*args, **kwargs)

    return faulty


def left_behind(folder: Path) -> dict[str, Any]:
    """Return what a finished run has left in its folder: texts, figures, weights and curves, without times."""
    found: dict[str, Any] = {}
    files = {file for file in folder.rglob("*") if file.is_file()}
    for file in sorted(files - {folder / LOCK_FILE}):  # of a process that is gone it hinders nobody
        name = str(file.relative_to(folder))
        if "tfevents" in file.name:
            curves = found.setdefault(f"{Path(name).parent}/curves", {})
            for tag, points in _curves(file).items():
                curves.setdefault(tag, []).extend(points)
        elif file.suffix == ".jsonl":
            found[name] = without_costs(read_records(file))
        elif file.suffix == ".json" and file.name != "run.json":
            found[name] = without_times(json.loads(file.read_text(encoding="utf-8")))
        elif file.suffix == ".safetensors":
            found[name] = file.read_bytes()
        else:
            found[name] = "there"
    return found


def without_times(node: Any) -> Any:
    """Return JSON without times, costs and the run that made it."""
    if isinstance(node, dict):
        kept = {name: without_times(item) for name, item in node.items() if not name.endswith((*TIMES, "run"))}
        targets = kept.get("target_modules")  # a set of peft's, in another order in each process
        return kept | ({"target_modules": sorted(targets)} if isinstance(targets, list) else {})
    return [without_times(item) for item in node] if isinstance(node, list) else node


def _curves(file: Path) -> Mapping[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(file)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.endswith(TIMES)
    }


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{holds} did not hold within {seconds} s")
        time.sleep(0.01)


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2:])  # Lightning starts the second process with what sys.argv says
