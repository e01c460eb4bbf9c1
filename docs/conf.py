"""How Sphinx builds the documentation: ``make docs``."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import mmpoe

DOCS = Path(__file__).parent
sys.path.append(str(DOCS / "_ext"))
os.environ["OMP_NUM_THREADS"] = "1"  # of the kernels that run pages: their tensors are small


def code_digest():
    """The hash of all code that pages may run."""
    digest = hashlib.sha256()
    for folder in (DOCS.parent / "mmpoe", DOCS.parent / "examples"):
        for file in sorted(f for f in folder.rglob("*") if f.suffix in (".py", ".cpp", ".cuh")):
            digest.update(f"{file.relative_to(DOCS.parent)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


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
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS / "_build" / "cache" / code_digest())
nb_execution_raise_on_error = True
nb_execution_timeout = 1200
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
    """Reads pages with code in each build: they depend on the library, not on their text alone.

    They are executed if their code or that of the project changed since; what was cached of other
    code is dropped.
    """
    cache = Path(app.config.nb_execution_cache_path)
    for old in cache.parent.glob("*"):
        if old != cache:
            shutil.rmtree(old)
    return [page for page in env.found_docs if "file_format: mystnb" in _head(env.doc2path(page))]


def _head(path):
    with Path(path).open(encoding="utf-8") as file:
        return file.read(100)
