"""The configuration of the documentation site, which `nox -s docs` builds.

The build needs no network, so it has no intersphinx. Formulas become MathML, which browsers show without a script.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as installed
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
import generated

project = "crossent"
release = version = installed("crossent")
project_copyright = "the authors of crossent. The licence is MIT"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build", "_generated"]

html_theme = "furo"
html_title = "crossent"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = html_copy_source = html_show_sourcelink = False
pygments_dark_style = "github-dark"
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # the same anchors as on GitHub, for the links of included pages

default_role = "literal"  # docstrings write `code` with single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"Progress": "Progress"}
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True

nitpicky = True
# Names without a target: types of other packages, and types that occur only in annotations.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|np|numpy|rich|os|collections|concurrent|typing|Tensor|RenderableType)(\..*)?"),
    ("py:.*", r"optional|dict\[.*|_Array|Array|Progress|Function"),
    ("py:.*", r"crossent\.(adapters|cases|checks|numerics|report|trials)\..*"),
]


def mathml(display: str):
    """Return the function that writes a formula of the page as MathML, in a line or in a block."""

    def visit(translator, node: nodes.Element) -> None:
        formula = tex2mathml(node.astext(), as_block=display == "block")
        # Without this, a browser shows a bar in a row as an operator, with space on both sides.
        formula = formula.replace('<mo class="mathopen">|', '<mo form="prefix">|').replace(
            "<mo>|", '<mo form="postfix">|'
        )
        translator.body.append(formula)
        raise nodes.SkipNode

    return visit


def keep(app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    """Store the docstring of a property, since napoleon reads the words before its first colon as a type."""
    if what == "property":
        app.env.temp_data["docstring"] = list(lines)


def restore(app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    """Restore the docstring of a property. In entries such as `level, seed:`, keep `level,` from becoming a type."""
    if what == "property":
        lines[:] = app.env.temp_data.pop("docstring")
    lines[:] = [re.sub(r"^:ivar [\w, ]+:", lambda entry: entry[0].replace(", ", "/"), line) for line in lines]


def without_lines_for_a_clone(app: Sphinx, name: str, source: list[str]) -> None:
    """Remove the links to included files. They are for readers on GitHub, which shows no included file."""
    source[0] = re.sub(r"^In a clone, read \[.*\n\n?", "", source[0], flags=re.M)


def setup(app: Sphinx) -> None:
    """Register the functions of this module, and write the generated tables before Sphinx reads the pages."""
    app.connect("source-read", without_lines_for_a_clone)
    app.add_html_math_renderer("mathml", (mathml("inline"), None), (mathml("block"), None))
    app.connect("autodoc-process-docstring", keep, priority=400)  # before napoleon, whose priority is 500
    app.connect("autodoc-process-docstring", restore, priority=600)
    app.connect("builder-inited", lambda app: generated.write(Path(app.srcdir) / "_generated"))
