"""Every notebook runs from top to bottom, offline, with this Python; none is committed with its outputs."""

import ast
import importlib
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


class ThisPython(AsyncKernelManager):
    """Starts the kernel with the Python that runs the tests, whatever kernels the user has registered."""

    @property
    def kernel_spec(self):
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="this Python", language="python")


def execute(notebook, folder):
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_it_imports_from_hsdlab_exists(path):
    """What `make test` checks of each; `make test-all` runs it."""
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    python = re.sub(r"^[!%].*$", "", code, flags=re.MULTILINE)
    imports = [node for node in ast.walk(ast.parse(python)) if isinstance(node, ast.ImportFrom)]
    ours = [(node.module, alias.name) for node in imports for alias in node.names if node.module.startswith("hsdlab")]
    assert ours or "hsdlab" in code
    for module, name in ours:
        assert hasattr(importlib.import_module(module), name), (module, name)


def test_the_kernel_is_this_python(tmp_path):
    cell = nbformat.v4.new_code_cell("import sys; print(sys.executable)")
    done = execute(nbformat.v4.new_notebook(cells=[cell]), tmp_path)
    assert done.cells[0].outputs[0].text.strip() == sys.executable


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_offline(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    execute(nbformat.read(path, as_version=4), tmp_path)  # raises CellExecutionError where a cell fails


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs, f"{path.name}: run python docs/strip_notebooks.py"
            assert cell.execution_count is None
