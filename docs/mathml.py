"""Formulas as MathML, which browsers draw by themselves: MathJax would be fetched from another server."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

_BRACE = re.compile(r"(?<!<mrow>)(\n\s*)<mo>([{}])</mo>(?!\n\s*</mrow>)")


def mathml(formula: str, as_block: bool = False) -> str:
    r"""Return a formula of LaTeX as MathML; ``\{`` is as large as the text, ``\left\{`` as what it encloses."""
    return _BRACE.sub(r'\1<mo stretchy="false">\2</mo>', tex2mathml(formula, as_block=as_block))


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">\n{mathml(node.astext(), as_block=True)}\n</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Offer the renderer ``mathml`` to Sphinx (``html_math_renderer``)."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
