"""Sphinx's settings: ``make docs`` builds the site from docs/, notebooks/ and the docstrings, without network."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the extensions of this folder, and the hsdlab of this checkout

project = "hsdlab"
author = "The hsdlab maintainers"
(release,) = re.findall(r'^__version__ = "(.+)"', (ROOT / "hsdlab/version.py").read_text(encoding="utf-8"), re.M)
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docs.copied_notebooks",
    "docs.docstrings",
    "docs.mathml",
    "docs.schedule_figures",
]
exclude_patterns = ["_build", "results", "**.ipynb_checkpoints"]

# Pages
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # tests/test_notebooks.py runs them; they are committed without outputs

# Docstrings
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!hsdlab\.)\w+\..*"),  # of other projects: their inventories would have to be fetched
    # "BoolTensor [rows, layers]: ..." and "Logits [rows, n], and ...: ..." of Returns sections
    ("py:class", r"(Bool|Long|Int|Float)?Tensor|rows|layers|length|.*\s.*"),
    # type variables and internal aliases
    ("py:.*", r"hsdlab\.(calibration\.fixed_sequence\.Setting|records\.document\.Record)"),
    ("py:class", r"Settings|hsdlab\.decoding\.(skipping\.LayerRunner|decisions\.Decisions)"),
    ("py:class", r"hsdlab\.data\.(source_target\.SourceAndTarget|batches\.Pair)"),
    ("py:exc", r"NOT_A_RECORD"),  # the exceptions of hsdlab.records.document, by the name of their tuple
]

# Looks
html_theme = "furo"
html_title = f"hsdlab {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
