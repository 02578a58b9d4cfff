"""What a result was made with: versions, commit, seed, configuration, machine.

"Publish only what a committed config reproduces" needs the commit and the configuration in every result file.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hsdlab.version import __version__

PACKAGES = ("torch", "lightning", "transformers", "torchmetrics")


def run_provenance(seed: int | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance of a run that starts now, ready for JSON if the configuration is.

    Args:
        seed: the run's random seed, None where none was set.
        config: the run's configuration, taken over as it is.

    Returns:
        `date_utc` (ISO 8601), `command` (the command line), `seed`, `config`, `versions` (package to version,
        None where not installed), `git` (`commit` and `dirty`: tracked files differ from it; None outside a
        checkout of hsdlab or without git), `machine` (see `describe_machine`).
    """
    return {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        "seed": seed,
        "config": dict(config),
        "versions": {
            "hsdlab": __version__,
            "python": platform.python_version(),
            **{package: _installed_version(package) for package in PACKAGES},
        },
        "git": git_state(Path(__file__).resolve()),
        "machine": describe_machine(),
    }


def git_state(file: Path) -> dict[str, Any] | None:
    """Return the commit and the dirty flag of the checkout that tracks a file.

    Args:
        file: any path. One that lies inside a checkout without being tracked, as an installed package in a
            virtual environment does, says nothing about the commit of its own code.

    Returns:
        {"commit": 40 hex digits, "dirty": bool}, or None without git, checkout, or commit.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(file.parent, "rev-parse", "HEAD")
    changed = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changed is None:
        return None
    return {"commit": commit, "dirty": bool(changed)}


def describe_machine() -> dict[str, Any]:
    """Return the CPU model, its logical cores, torch's threads, memory in GiB, GPU names and the system."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "system": platform.platform(),
    }


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
    """Return the CPU's name: /proc/cpuinfo has it on x86 Linux, the platform module elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    """Return the machine's memory, None where the system does not tell (Windows)."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None
