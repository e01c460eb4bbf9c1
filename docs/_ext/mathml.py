r"""Renders formulas as MathML, which browsers draw themselves: no script, no network, no LaTeX.

The conversion is the one that docutils carries. A formula that it does not understand is a build
warning that shows the formula.
"""

import re
from html import escape

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)

DOTS = re.compile(r"\\dots\b")
BIG = re.compile(r"\\(big|Big|bigg|Bigg)\s*(\\\{|\\\}|[()\[\]])")
"""Delimiters of a fixed size: docutils wants to be told which ones open and which ones close."""
APPLY = re.compile(r'<mo>(&ApplyFunction;|\u2061)</mo>(?!\s*<mo stretchy="false">\()')
"""After a function's name, unless a parenthesis follows; TeX puts a thin space there."""


def to_mathml(tex, display):
    tex = BIG.sub(lambda m: f"\\{m[1]}{'l' if m[2][-1] in '([{' else 'r'}{m[2]}", tex)
    mathml = tex2mathml(DOTS.sub(r"\\ldots", tex))
    mathml = APPLY.sub('<mspace width="0.17em"></mspace>', mathml)
    return mathml.replace("<math ", '<math display="block" ', 1) if display else mathml


def visit(translator, node, display):
    tex = node.astext()
    try:
        mathml = to_mathml(tex, display)
    except MathError as error:
        logger.warning("MathML: %s in %r", error, tex, location=node)
        mathml = f"<code>{escape(tex)}</code>"
    translator.body.append(f'<div class="math">{mathml}</div>' if display else mathml)
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda self, node: visit(self, node, display=False), None),
        block_renderers=(lambda self, node: visit(self, node, display=True), None),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
