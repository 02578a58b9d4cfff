"""A disk of few kilobytes, for tests of what happens when it is full."""

import subprocess

import pytest


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of so many bytes, or give the mounted one another size; skipped where that is not allowed."""
    folder = tmp_path / "small_disk"

    def mounted(size_bytes):
        if folder.exists():
            command = ["mount", "-o", f"remount,size={size_bytes}", str(folder)]
        else:
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return folder

    yield mounted
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)
