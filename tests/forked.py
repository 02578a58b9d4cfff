"""Programs in processes of their own, forked from one that has imported hsdlab: the imports take ten seconds each time.

The tests that use it belong to the group "processes" of xdist, so that one worker imports for all of them. Those that
need a real start, of Python and of the imports, start one with `subprocess`.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.utils.tensorboard  # noqa: F401  what a run imports late
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.utilities.rank_zero import rank_zero_only
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


class Program:
    """A Python script that runs with these words in a folder, whose modules it can import.

    `variables` are of its environment, beside those of the first test that started a program.
    """

    def __init__(self, script: Path, words: Sequence[str], cwd: Path, **variables: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name, name) for name in ("out", "err")]
        self._process = CONTEXT.Process(target=_run, args=(script, words, cwd, self._files, variables))
        self._process.start()

    def end(self, seconds: float = 300) -> Ended:
        """Wait for its end; kill it after so many seconds."""
        self._process.join(timeout=seconds)
        self._process.kill()
        self._process.join()
        with self._folder:
            return Ended(self._process.exitcode, *(file.read_text(encoding="utf-8") for file in self._files))


def ended(script: Path, words: Sequence[str], cwd: Path) -> Ended:
    """Run a program to its end."""
    return Program(script, words, cwd).end()


def ended_together(script: Path, words: Sequence[str], cwd: Path) -> Ended:
    """Run a program in two processes of Lightning, as `torchrun` starts them; return what both wrote."""
    port = str(find_free_network_port())
    both = [Program(script, words, cwd, LOCAL_RANK=rank, MASTER_PORT=port) for rank in "01"]
    one, other = (program.end() for program in both)
    return Ended(one.code or other.code, one.out + other.out, one.err + other.err)


def _run(script: Path, words: Sequence[str], cwd: Path, files: Sequence[Path], variables: Mapping[str, str]) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.update(variables)
    rank_zero_only.rank = int(variables.get("LOCAL_RANK", 0))  # else as the server was started
    sys.path.insert(0, str(cwd))
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")
