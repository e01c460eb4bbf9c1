"""Markup in any entry of what a file holds, one entry at a time."""

PLANTED = "</script>' onplanted=1 \"><x-planted>\n\n# a|b\n\n```\n[c](http://d) =1+1"
"""Text that would end a script, an attribute, an element, a paragraph and the cell of a table."""


def planted(value):
    """Yields a value with markup in the place of an entry, or as the key of one more entry.

    Each entry has its turn; of a list, the first one.
    """
    if isinstance(value, dict):
        key = next(iter(value), "")
        yield {**value, PLANTED: value.get(key, PLANTED)}
    entries = list(value.items() if isinstance(value, dict) else enumerate(value[:1]))
    for key, entry in entries:
        changes = planted(entry) if isinstance(entry, (dict, list)) else ()
        for change in (PLANTED, *changes):
            changed = value.copy()
            changed[key] = change
            yield changed
