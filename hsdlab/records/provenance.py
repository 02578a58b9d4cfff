"""RunInfo: the provenance of a result. Versions, commit, seed, configuration and machine.

Only what a committed configuration reproduces should be published, so every result file holds commit and configuration.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

import torch

from hsdlab.records.document import Document, JsonObject, JsonValue, Upgrade
from hsdlab.version import __version__

PACKAGES = ("torch", "lightning", "transformers", "torchmetrics")


@dataclass(frozen=True)
class GitState:
    """The git checkout that a run's code came from.

    Attributes:
        commit: 40 hex digits.
        dirty: Whether tracked files differ from the commit.
    """

    commit: str
    dirty: bool


@dataclass(frozen=True)
class Machine:
    """The machine that a run was made on.

    Attributes:
        cpu: Name of the processor.
        cores: Logical cores; None where the system does not say.
        torch_threads: Threads of torch within one operation.
        memory_gib: Main memory, GiB; None where the system does not say.
        gpus: Names of the CUDA GPUs that torch sees.
        system: Operating system and its version.
        omp_wait_policy: OMP_WAIT_POLICY, how OpenMP's threads wait for each other; None if it was not set.
        gomp_spincount: GOMP_SPINCOUNT, how long they wait awake; None if it was not set.
    """

    cpu: str
    cores: int | None
    torch_threads: int
    memory_gib: float | None
    gpus: tuple[str, ...]
    system: str
    omp_wait_policy: str | None = None
    gomp_spincount: str | None = None


@dataclass(frozen=True)
class Session:
    """The provenance of one session of a run. A run that is resumed has several.

    Attributes:
        date_utc: When the session began, ISO 8601.
        versions: Package to version; None where it is not installed.
        git: The checkout; None outside a checkout of hsdlab or without git.
        machine: The machine of the session.
    """

    date_utc: str
    versions: Mapping[str, str | None]
    git: GitState | None
    machine: Machine


@dataclass(frozen=True)
class RunInfo(Document):
    """The provenance of a run: run.json of its folder, and part of each result.

    Hashes and fingerprints are hex digits. They are None where they were not taken.

    Attributes:
        date_utc: When the run's last session began, ISO 8601.
        command: The command line, as `sys.argv` has it.
        seed: The random seed; None where none was set.
        config: The resolved configuration.
        versions: Package to version; None where it is not installed.
        git: The checkout; None outside a checkout of hsdlab or without git.
        machine: The machine of the last session.
        subcommand: Of `evaluate.py` or `train.py`; empty for a run from Python.
        examples: Fingerprint of the examples, 16 digits.
        weights: Fingerprint of the model's weights, taken from 64 numbers per tensor, 16 digits.
        weights_hash: Hash of all numbers of the model's weights, 32 digits.
        model_config: Hash of the model's configuration, 16 digits.
        tokenizer: Hash of the tokenizer with its chat template and special tokens, 16 digits.
        own_code: Hash of the source of each of the user's own classes, and of each file that an option names.
        generation: How texts were decoded: "options" holds the options in effect, "not_taken" the other entries of the
            model's generation config. None where it was not noted.
        earlier: Earlier sessions of a resumed run with other versions, commit or machine, oldest first.
    """

    kind: ClassVar[str] = "run"
    upgrades: ClassVar[Mapping[int, Upgrade]] = {1: dict}  # the same, without a version

    date_utc: str
    command: tuple[str, ...]
    seed: int | None
    config: JsonObject
    versions: Mapping[str, str | None]
    git: GitState | None
    machine: Machine
    subcommand: str = ""
    examples: str | None = None
    weights: str | None = None
    generation: JsonObject | None = None
    earlier: tuple[Session, ...] = field(default=())
    weights_hash: str | None = None
    model_config: str | None = None
    tokenizer: str | None = None
    own_code: Mapping[str, str] | None = None

    @property
    def session(self) -> Session:
        """The provenance of the last session."""
        return Session(self.date_utc, self.versions, self.git, self.machine)


def run_info(
    seed: int | None = None,
    config: Mapping[str, JsonValue] | None = None,
    subcommand: str = "",
    generation: JsonObject | None = None,
) -> RunInfo:
    """Collect the provenance of a run that starts now.

    Args:
        seed: The run's random seed; None or False where none was set.
        config: The run's configuration. A value that JSON cannot hold is noted as text.
        subcommand: Of the command line; empty for a run from Python.
        generation: How texts are decoded, as `hsdlab.models.generation.Generation.record` returns it; None for unknown.

    Returns:
        Date, command line, versions, commit and machine of this process. Fingerprints and hashes are None.
    """
    return RunInfo(
        date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(sys.argv),
        seed=None if seed is False else seed,  # how the command line says "none"
        config=json.loads(json.dumps(dict(config or {}), default=str)),
        versions={
            "hsdlab": __version__,
            "python": platform.python_version(),
            **{package: _installed_version(package) for package in PACKAGES},
        },
        git=git_state(Path(__file__).resolve()),
        machine=describe_machine(),
        subcommand=subcommand,
        generation=generation,
    )


def git_state(file: Path) -> GitState | None:
    """Find the commit of the checkout that tracks a file.

    Args:
        file: Any path. A file that lies inside a checkout without being tracked, such as an installed package in a
            virtual environment, has no commit.

    Returns:
        Commit and whether tracked files differ from it; None without git, checkout or commit.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(file.parent, "rev-parse", "HEAD")
    changed = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changed is None:
        return None
    return GitState(commit, bool(changed))


def describe_machine() -> Machine:
    """Describe the machine that this process runs on.

    Returns:
        Processor, cores, threads of torch and how they wait, memory, GPUs and operating system.
    """
    return Machine(
        cpu=_cpu_model(),
        cores=os.cpu_count(),
        torch_threads=torch.get_num_threads(),
        memory_gib=_memory_gib(),
        gpus=tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
        system=platform.platform(),
        omp_wait_policy=os.environ.get("OMP_WAIT_POLICY"),
        gomp_spincount=os.environ.get("GOMP_SPINCOUNT"),
    )


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's output, None where git is missing or refuses."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """Return the CPU's name and torch's instruction set: "AMD EPYC (AVX2)".

    /proc/cpuinfo has the name on x86 Linux, the platform module elsewhere.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"  # cloud machines of one name differ in it


def _memory_gib() -> float | None:
    """Return the machine's memory in GiB; None where the system does not say (Windows)."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None
