"""What import-linter's contracts in pyproject.toml cannot say: how strategies and attribute paths keep apart."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import hsdlab

ROOT = Path(hsdlab.__file__).parent


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


def test_no_strategy_imports_another():
    bases = {"__init__", "arguments", "base", "budget", "schedule", "confidence", "probing", "vocabulary"}
    concrete = {path.stem for path in (ROOT / "strategies").glob("*.py")} - bases
    assert {"calm", "compose", "hsd"} <= concrete
    for path in (ROOT / "strategies").glob("*.py"):
        if path.name != "__init__.py":
            assert not concrete & {name.removeprefix("strategies.") for name in imports(path)}, path


def test_importing_hsdlab_does_no_work():
    """The public names come lazily: neither torch nor Lightning is loaded before one of them is used."""
    code = "import sys, hsdlab; print(sorted({'torch', 'lightning', 'transformers', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


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
        if path.name != "families.py" and part(path) in ("decoding", "strategies", "modules", "runs"):
            code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL)  # examples in docstrings name them
            found = [name for name in paths if name in code]
            assert not found, f"{path}: {found}"
