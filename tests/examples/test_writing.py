"""Text for people: what is filled in is read as it was written, wherever it is shown."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from planting import PLANTED, planted
from volumes import make_run

from examples.medical_mri_us.card import write_card
from examples.medical_mri_us.writing import code, csv_rows, csv_text, fill, script_data, table, tag
from mmpoe.training import CheckpointError

ROOT = Path(__file__).parents[2]
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])

marks = st.text(st.sampled_from("ab 1\n`*_[](){}<>|~&#!+-.=:/\\'\"\t;x@"), max_size=12)
texts = marks | st.text(max_size=12)


class Reader(HTMLParser):
    """Reads elements, attributes and text."""

    def __init__(self):
        super().__init__()
        self.text, self.elements = "", []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@given(texts)
@example(PLANTED)
def test_html_says_what_it_was_given(text):
    reader = Reader()
    reader.feed(str(tag("p", text, tag("b", text), title=text, data_x=text)))
    reader.close()
    (p, attributes), (b, none) = reader.elements
    assert (p, b, none) == ("p", "b", {})
    assert set(attributes) == {"title", "data-x"}
    # browsers read every kind of line break as the same one, and have no character 0
    same = lambda read: re.sub("\r\n?", "\n", read).replace("\0", "\ufffd")
    assert same(attributes["title"]) == same(attributes["data-x"]) == same(text)
    assert same(reader.text) == same(2 * text)


def test_attributes_may_be_there_or_not():
    assert str(tag("input", hidden=True, id=None, checked=False)) == "<input hidden>"
    assert str(tag("i", class_="a b", aria_label="x")) == "<i class='a b' aria-label=x></i>"
    assert str(tag("p", None, 1, [2.5, [tag("b", "x")]])) == "<p>12.5<b>x</b></p>"


def test_scripts_and_styles_cannot_be_ended_early():
    assert str(tag("style", "a>b{}")) == "<style>a>b{}</style>"
    with pytest.raises(ValueError, match=r"'content' of script should not hold '</'"):
        tag("script", "'</script>'")


@given(texts)
@example(PLANTED)
@example("<!--<script>")
def test_data_for_scripts_is_read_as_it_was(text):
    element = str(script_data({"a": text}, id="x"))
    start, end = "<script type='application/json' id=x>", "</script>"
    inside = element.removeprefix(start).removesuffix(end)
    assert element == f"{start}{inside}{end}"
    assert "<" not in inside
    assert json.loads(inside) == {"a": text}


def test_elements_are_made_in_one_place():
    """Whatever made one of a string could leave that unescaped."""
    for file in (ROOT / "examples" / "medical_mri_us").rglob("*.py"):
        if file.name != "html.py":
            source = file.read_text()
            assert not re.search(r"\bTag\(|^import html|f\"\"?\"?<[a-z]", source, re.MULTILINE), (
                file
            )


def shown(markdown):
    """The text of one paragraph, and whether it is nothing but text."""
    tokens = MARKDOWN.parse(markdown)
    kinds = [token.type for token in tokens]
    inside = tokens[1].children if len(tokens) > 1 else []
    plain = kinds in ([], ["paragraph_open", "inline", "paragraph_close"])
    plain = plain and {token.type for token in inside} <= {"text", "text_special"}
    return "".join(token.content for token in inside), plain


@given(texts)
@example(PLANTED)
def test_markdown_says_what_it_was_given_on_one_line(text):
    read, plain = shown(fill("x{}y", text))
    assert plain
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)
    assert read == f"x{line}y"


@given(texts)
@example(PLANTED)
def test_cells_and_code_stay_within_themselves(text):
    cells = [["h", code("h")], [text, code(text)], ["end", code("end")]]
    tokens = MARKDOWN.parse(str(table(*cells[:1], cells[1:])))
    kinds = Counter(token.type for token in tokens)
    assert kinds["table_open"] == 1
    assert kinds["tr_open"] == 3
    assert kinds["td_open"] == 4
    inside = [t.type for token in tokens if token.children for t in token.children]
    assert set(inside) <= {"text", "text_special", "code_inline"}
    assert inside.count("code_inline") == 3
    assert kinds["heading_open"] == kinds["fence"] == kinds["html_block"] == 0


def structure(text):
    """The headings, and how often there is each other part."""
    tokens = MARKDOWN.parse(text)
    headings = [
        tokens[k + 1].content for k, token in enumerate(tokens) if token.type == "heading_open"
    ]
    parts = Counter(token.type for token in tokens)
    parts.update(t.type for token in tokens for t in token.children or ())
    kinds = "fence", "table_open", "link_open", "hr", "html_block", "html_inline"
    return headings, {kind: parts[kind] for kind in kinds if parts[kind]}


@pytest.mark.fault(61)
@pytest.mark.parametrize("name", ["model/model.json", "data.json"])
def test_no_entry_adds_a_heading_or_a_link_to_a_card(name, tmp_path):
    run = make_run(tmp_path / "run", spacing=[1.0, 1.0, 2.0], harmonised=["t2"], calibrated=False)
    patterns = [{"observed": [True] * 4, "cases": 2}]
    found = {"cases": 2, "incomplete": 0, "patterns": patterns}
    data = {"split": "train", "phantom": True, "missingness": found, "problems": ["x"]}
    (run / "data.json").write_text(json.dumps(data))
    card = write_card(run)
    headings, parts = structure(card.read_text())
    assert parts == {"fence": 1, "table_open": 1}
    written = 0
    whole = json.loads((run / name).read_text())
    for changed in planted(whole):
        (run / name).write_text(json.dumps(changed))
        card.unlink(missing_ok=True)
        with suppress(CheckpointError):
            write_card(run)
        if not card.exists():
            continue
        written += 1
        found = structure(card.read_text())
        assert found[0][1:] == headings[1:]
        assert found[1] == parts
    assert written > 5


@given(st.lists(st.tuples(texts, texts), max_size=3))
@example([("=1+1", "'=x"), ("@a", "-1+1"), ("+x", "\t=a")])
def test_csv_is_read_as_it_was_written(rows):
    rows = [tuple(cell.replace("\0", "") for cell in row) for row in rows]
    text = csv_text([("a", "b"), *rows])
    assert csv_rows(text) == [{"a": a, "b": b} for a, b in rows]


@pytest.mark.fault(63)
@given(texts)
@example("=HYPERLINK(1)")
@example("-1+cmd|' /C calc'!A0")
@example("-2.5")
def test_no_cell_begins_like_a_formula_but_numbers(text):
    text = text.replace("\0", "")
    for (cell,) in csv.reader(io.StringIO(csv_text([[text]]), newline="")):
        if cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
            float(cell)
    assert csv_text([[-2.5, 3]]) == "-2.5,3\r\n"


PROGRAM = """
from examples.medical_mri_us.writing import patient_output
with patient_output():
    for _ in range(3000):
        print("done: ä \\udc80", flush={flush})
raise SystemExit(3)
"""


def run_program(stdout, flush, **environment):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(flush=flush)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )


@pytest.mark.fault(64)
@pytest.mark.parametrize("flush", [True, False])
def test_output_that_cannot_be_shown_changes_no_exit_code(flush):
    """A full disk, a reader that has gone, and no output at all."""
    with Path("/dev/full").open("w") as full:
        done = run_program(full, flush)
    assert done.returncode == 3
    (said,) = done.stderr.decode().splitlines()
    assert "Output cannot be shown any more: [Errno 28] No space left" in said

    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run_program(writer, flush)
    finally:
        os.close(writer)
    assert done.returncode == 3
    assert b"Broken pipe" in done.stderr
    shell = f"{sys.executable} -c '{PROGRAM.format(flush=flush)}' >&- 2>&-"
    done = subprocess.run(["sh", "-c", shell], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 3


@pytest.mark.fault(64)
def test_what_an_encoding_lacks_is_written_as_its_code():
    done = run_program(subprocess.PIPE, False, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.returncode, done.stderr) == (3, b"")
    assert done.stdout.splitlines()[0] == rb"done: \xe4 \udc80"
    done = run_program(subprocess.PIPE, False, PYTHONIOENCODING="utf-8")
    assert done.stdout.splitlines()[-1] == "done: ä ".encode() + rb"\udc80"


@pytest.mark.slow
@pytest.mark.fault(64)
def test_a_subcommand_ends_as_its_work_did(evaluated, tmp_path):
    """On a terminal that is ASCII, to a file of which the disk is full."""
    folder = tmp_path / "ä"
    shutil.copytree(evaluated / "eval", folder)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "examples.medical_mri_us", "report", str(folder)],
            cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").is_file()
