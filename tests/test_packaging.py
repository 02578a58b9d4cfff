"""What is published: the wheel, its metadata, the pinned versions, and the size of what git tracks."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import hsdlab

ROOT = Path(__file__).parents[1]
with (ROOT / "pyproject.toml").open("rb") as _file:
    PROJECT = tomllib.load(_file)["project"]
LARGEST_WHEEL_MB = 2
LARGEST_FILE_MB = 10
LARGEST_TREE_MB = 69


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def required(requirements):
    """Distribution -> lower bound, where there is one."""
    found = [re.match(r"([\w.-]+)(?:\[[\w,]+\])?(?:>=([\w.]+))?", each).groups() for each in requirements]
    return {normal(name): bound for name, bound in found}


def test_every_import_is_a_dependency():
    """Of the core, or of an extra for those in `of_extra`; no other package may be imported that comes by chance."""
    imported = {
        name.partition(".")[0]
        for path in (ROOT / "hsdlab").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([each.name for each in node.names] if isinstance(node, ast.Import) else [node.module])
    }
    others = imported - set(sys.stdlib_module_names) - {"hsdlab"}
    of_package = packages_distributions()
    distributions = {normal(of_package[name][0]) for name in others}
    extras = PROJECT["optional-dependencies"]
    known = required([*PROJECT["dependencies"], *extras["tune"], *extras["data"]])
    assert distributions - set(known) == set()
    assert set(known) - distributions == {"accelerate", "gguf"}  # of peft and transformers


def test_the_oldest_versions_are_the_lower_bounds():
    pinned = dict(
        re.match(r"([\w.-]+)==([\w.]+)", line).groups()
        for line in (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    extras = PROJECT["optional-dependencies"]
    lowest = required([*PROJECT["dependencies"], *extras["tune"], *extras["data"]])
    assert set(pinned) == set(lowest)
    for name, bound in lowest.items():
        assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", pinned[name]), f"{name}: {pinned[name]} is not {bound}"


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hsdlab.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(hsdlab.__version__)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)
    with (ROOT / "adapters/pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == hsdlab.__version__


def test_git_tracks_no_large_file():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("no git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    sizes = {str(file.relative_to(ROOT)): file.stat().st_size / 1e6 for file in files}
    assert {name: size for name, size in sizes.items() if size > LARGEST_FILE_MB} == {}
    assert sum(sizes.values()) <= LARGEST_TREE_MB


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.name)
def test_the_workflows_call_what_there_is(workflow):
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([\w-]+)", commands)) <= targets
    for file in re.findall(r"(?<=--constraint )\S+", commands):
        assert (ROOT / file.removeprefix("$GITHUB_WORKSPACE/")).is_file()
    for job in jobs.values():
        assert job["timeout-minutes"] <= 60
        assert all("@" in step.get("uses", "@") for step in job["steps"])


def test_the_wheel_is_small_and_whole(tmp_path):
    """Built from what git tracks, so that no leftover of an earlier build gets in."""
    source = tmp_path / "source"
    source.mkdir()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("no git checkout")
    for name in listed.stdout.split("\0"):
        if name.startswith(("hsdlab/", "configs/")) or name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < LARGEST_WHEEL_MB * 1e6
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
        (points,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/entry_points.txt"))
    tracked = [name for name in listed.stdout.split("\0") if name.startswith(("hsdlab/", "configs/"))]
    assert names == {name if name.startswith("hsdlab/") else f"hsdlab/{name}" for name in tracked}
    assert "hsdlab = hsdlab.cli.commands:main" in points
    expected = {f"Version: {hsdlab.__version__}", "Provides-Extra: tune", "License-Expression: Apache-2.0"}
    assert expected <= set(metadata.splitlines())
