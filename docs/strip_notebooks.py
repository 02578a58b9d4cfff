"""Remove the outputs of all notebooks, as they are committed: ``python docs/strip_notebooks.py``."""

from pathlib import Path

import nbformat

for path in sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)
    print(path)
