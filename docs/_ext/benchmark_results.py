"""Shows what benchmarks wrote, and only that: a line ``{results} NAME`` becomes its tables.

A benchmark that was not run yet is said to be so, with the command that runs it.
"""

import re
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PAGES = ("benchmarks", "fusion", "kernels", "medical_data", "reliability", "tables_and_omics")
LINE = re.compile(r"^\{results\} (\S+): `(.+)`$", re.MULTILINE)
"""The name of the results, and the command that writes them."""


def show(name, command, results=RESULTS):
    if not (results / f"{name}.md").is_file():
        return f"*Not measured yet:* `{command}`."
    return (
        f"```{{include}} ../benchmarks/results/{name}.md\n"
        ":heading-offset: 1\n:relative-images:\n```"
    )


def fill(app, docname, source):
    if docname in PAGES:
        source[0] = LINE.sub(lambda found: show(found[1], found[2]), source[0])


def always_read(app, env, added, changed, removed):
    """Results may have been written since."""
    return [*PAGES]


def setup(app):
    app.connect("source-read", fill)
    app.connect("env-get-outdated", always_read)
    return {"parallel_read_safe": True}
