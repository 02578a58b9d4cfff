"""The provenance of a run: every field against a second source."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lightning
import pytest
import torch
import torchmetrics
import transformers

from hsdlab.records import provenance
from hsdlab.records.provenance import GitState, RunInfo, run_info
from hsdlab.version import __version__


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository with one committed file."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    return tmp_path


def test_versions_seed_config_command_and_date(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "compare"])
    run = run_info(seed=7, config={"data": {"limit": 3}})
    assert run.versions == {
        "hsdlab": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "transformers": transformers.__version__,
        "torchmetrics": torchmetrics.__version__,
    }
    assert (run.seed, run.config, run.command) == (
        7,
        {"data": {"limit": 3}},
        ("evaluate.py", "compare"),
    )
    assert abs(datetime.fromisoformat(run.date_utc) - datetime.now(UTC)) < timedelta(minutes=1)
    assert RunInfo.from_json(run.to_json()) == run


def test_machine(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    machine = provenance.describe_machine()
    assert machine.cores == os.cpu_count()
    assert machine.torch_threads == torch.get_num_threads()
    assert len(machine.gpus) == torch.cuda.device_count()
    assert machine.cpu
    assert machine.omp_wait_policy == "passive"
    assert machine.gomp_spincount == "7"


def test_memory_is_the_systems_own_figure():
    kib = int(re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text()).group(1))
    assert provenance.describe_machine().memory_gib == pytest.approx(kib / 2**20, abs=0.1)


def test_clean_checkout_then_changed(checkout):
    clean = GitState(git(checkout, "rev-parse", "HEAD"), dirty=False)
    assert provenance.git_state(checkout / "code.py") == clean
    (checkout / "output.json").write_text("{}")  # an untracked output is no change of the code
    assert provenance.git_state(checkout / "code.py") == clean
    (checkout / "code.py").write_text("2\n")
    assert provenance.git_state(checkout / "code.py") == GitState(clean.commit, dirty=True)


def test_untracked_file_inside_a_checkout_has_no_commit(checkout):
    (checkout / "site-packages").mkdir()
    installed = checkout / "site-packages" / "code.py"
    installed.write_text("1\n")
    assert provenance.git_state(installed) is None


def test_no_checkout_and_no_git(checkout, tmp_path_factory, monkeypatch):
    outside = tmp_path_factory.mktemp("outside") / "code.py"
    outside.write_text("1\n")
    assert provenance.git_state(outside) is None
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(checkout / "code.py") is None
    assert run_info(seed=None, config={}).git is None


def test_missing_package_and_unreadable_cpu(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package-here",))
    assert run_info(seed=0, config={}).versions["no-such-package-here"] is None

    def refuse(*_, **__):
        raise OSError

    monkeypatch.setattr(provenance.Path, "read_text", refuse)
    assert provenance.describe_machine().cpu == provenance.platform.processor() or provenance.platform.machine()
