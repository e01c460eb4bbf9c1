"""Text for people and for the programs that show it, escaped by construction."""

__all__ = [
    "Content",
    "Markdown",
    "Tag",
    "code",
    "code_block",
    "csv_rows",
    "csv_text",
    "fill",
    "joined",
    "page",
    "patient_output",
    "script_data",
    "table",
    "tag",
]

from .html import Content, Tag, page, script_data, tag
from .markdown import Markdown, code, code_block, fill, joined, table
from .spreadsheet import csv_rows, csv_text
from .terminal import patient_output
