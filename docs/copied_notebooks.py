"""The notebooks as pages: Sphinx reads no page from outside docs/, and follows no link there."""

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
COPIES = Path(__file__).parent / "notebooks"


def copy(app: Sphinx) -> None:
    """Copy the notebooks into docs/notebooks, their links to docs/ as seen from there; drop what is no longer one."""
    COPIES.mkdir(exist_ok=True)
    wanted = {
        path.name: path.read_text(encoding="utf-8").replace("](../docs/", "](../") for path in NOTEBOOKS.glob("*.ipynb")
    }
    for path in COPIES.iterdir():
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        copied = COPIES / name
        if not copied.is_file() or copied.read_text(encoding="utf-8") != text:
            copied.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Copy before Sphinx looks for pages."""
    app.connect("builder-inited", copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
