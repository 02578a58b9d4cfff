"""Programs in processes of their own, forked from one that has imported hsdlab: the imports take ten seconds each time.

The tests that need a real start, of Python and of the imports, start one with `subprocess`.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.utils.tensorboard  # noqa: F401  what a run imports late
from rouge_score import rouge_scorer  # noqa: F401

import hsdlab.cli
import hsdlab.cli.train  # noqa: F401

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.forked"])


@dataclass(frozen=True)
class Ended:
    """What became of a program: its exit code and what it wrote to the standard streams."""

    code: int
    out: str
    err: str


def ended(script: Path, words: Sequence[str], cwd: Path, seconds: float = 120) -> Ended:
    """Run a Python script with these words in a folder, whose modules it can import, until it ends."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        process = CONTEXT.Process(target=_run, args=(script, words, cwd, files))
        process.start()
        process.join(timeout=seconds)
        process.kill()
        process.join()
        return Ended(process.exitcode, *(file.read_text(encoding="utf-8") for file in files))


def _run(script: Path, words: Sequence[str], cwd: Path, files: Sequence[Path]) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    sys.path.insert(0, str(cwd))
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")
