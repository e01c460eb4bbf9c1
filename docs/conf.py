"""How Sphinx builds the documentation: ``make docs``."""

import sys
from pathlib import Path

import mmpoe

sys.path.append(str(Path(__file__).parent / "_ext"))

project = "mmpoe"
author = "The mmpoe developers"
copyright = author
version = release = mmpoe.__version__

extensions = [
    "benchmark_results",
    "mathml",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]

# markdown and executed notebooks
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"
nb_merge_streams = True

# docstrings
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autosummary_generate = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

# references
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

# pages
html_theme = "furo"
html_title = f"mmpoe {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_show_copyright = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app):
    app.connect("autodoc-skip-member", skip_undescribed_field)
    app.connect("env-get-outdated", always_execute)


def skip_undescribed_field(app, what, name, obj, skip, options):
    """Leaves out named-tuple fields that have only the docstring Python gives them."""
    return (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") or None


def always_execute(app, env, added, changed, removed):
    """Runs pages with code in each build: they depend on the library, not on their text alone."""
    return ["tutorial", "training"]
