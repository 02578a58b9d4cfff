"""How Sphinx reads the docstrings: two habits of the project that napoleon and the Python domain do not know."""

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def keep_colons(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from reading "text: more text" at the start of an attribute's docstring as "type: description"."""
    if what in ("attribute", "data", "property") and lines and lines[0]:
        lines.insert(0, "")


def by_last_name(
    app: Sphinx, environment: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Resolve a short name, such as ``budget``, to the one documented object whose last name it is."""
    if node.get("refdomain") != "py":
        return None
    domain = environment.get_domain("py")
    last = node["reftarget"].rpartition(".")[2]
    found = [name for name, entry in domain.objects.items() if name.rpartition(".")[2] == last and not entry.aliased]
    if len(found) != 1 or not node["reftarget"].startswith(("hsdlab.", last)):
        return None
    node["reftarget"] = found[0]
    return domain.resolve_xref(environment, node["refdoc"], app.builder, node["reftype"], found[0], node, content)


def setup(app: Sphinx) -> dict[str, Any]:
    """Put the first before napoleon, the second after all other ways to resolve a reference."""
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("missing-reference", by_last_name, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
