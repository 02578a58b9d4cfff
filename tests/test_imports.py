"""Imports point one way (architecture.md)."""

import ast
from pathlib import Path

import pytest

import hsdlab

ROOT = Path(hsdlab.__file__).parent
# What each part of the package may import of the package, besides itself.
ALLOWED = {
    "version": set(),
    "decoding": set(),
    "metrics": set(),
    "paths": set(),
    "files": set(),
    "embedded": {"models", "paths"},
    "models": {"embedded"},
    "data": {"paths"},
    "calibration": set(),
    "tuning": {"decoding", "files", "strategies"},
    "strategies": {"decoding", "metrics.efficiency"},
    "testing": {"decoding", "strategies"},
    "modules": {"decoding", "files", "metrics", "models", "embedded"},
    "reporting": {"calibration", "decoding.layer_ranges", "files", "metrics", "tuning", "version"},
    "bench": {"decoding", "files", "reporting", "strategies.base", "strategies.confidence", "strategies.full_depth"},
    "run_folder": {"files"},
    "strategy_runs": {"data", "decoding.families", "metrics", "modules", "reporting", "strategies"},
    "calibration_run": {"calibration", "metrics", "modules", "reporting", "strategies", "strategy_runs"},
    "tuning_run": {
        "calibration_run",
        "data",
        "decoding",
        "modules",
        "reporting",
        "strategies",
        "strategy_runs",
        "tuning",
    },
    "trainer": {
        "bench",
        "calibration",
        "calibration_run",
        "data",
        "decoding.families",
        "modules",
        "reporting",
        "strategies",
        "strategy_runs",
        "tuning",
        "tuning_run",
    },
    "parser": {"data", "strategies"},
    "cli": {
        "calibration_run",
        "data",
        "models",
        "modules",
        "parser",
        "reporting",
        "run_folder",
        "strategies",
        "strategy_runs",
        "trainer",
        "tuning_run",
    },
    "train_cli": {"cli", "parser", "run_folder", "data", "models", "modules", "reporting", "strategies"},
}


def imports(path):
    """Names below ``hsdlab`` that a file imports, for example ``decoding.trace``."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
            if node.module == "hsdlab":
                names = [f"hsdlab.{alias.name}" for alias in node.names]
        yield from (name.removeprefix("hsdlab.") for name in names if name.startswith("hsdlab."))


def part(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def test_every_part_is_listed():
    assert {part(p) for p in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    for name in imports(path):
        allowed = {part(path), *ALLOWED[part(path)]}
        assert any(name == a or name.startswith(f"{a}.") for a in allowed), f"{path} imports hsdlab.{name}"


def test_no_strategy_imports_another():
    bases = {"__init__", "base", "schedule", "confidence", "probing"}
    concrete = {path.stem for path in (ROOT / "strategies").glob("*.py")} - bases
    assert {"calm", "compose", "hsd"} <= concrete
    for path in (ROOT / "strategies").glob("*.py"):
        if path.name != "__init__.py":
            assert not concrete & {name.removeprefix("strategies.") for name in imports(path)}, path


def test_decoding_knows_no_lightning():
    for path in (ROOT / "decoding").glob("*.py"):
        modules = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            )
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert not modules & {"lightning", "torchmetrics", "jsonargparse"}, path


def test_only_families_touches_attribute_paths_of_models():
    paths = {
        "q_proj",
        "lm_head",
        "embed_tokens",
        "transformer.h",
        "model.layers",
        "final_layer_norm",
        "ln_f",
        "get_decoder",
    }
    for path in FILES:
        if path.name != "families.py" and part(path) in ("decoding", "strategies", "modules", "bench"):
            found = [name for name in paths if name in path.read_text()]
            assert not found, f"{path}: {found}"
