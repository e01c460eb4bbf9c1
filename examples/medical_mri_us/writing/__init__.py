"""Text for people and programs that read it: escaped by construction."""

__all__ = ["Content", "Tag", "page", "script_data", "tag"]

from .html import Content, Tag, page, script_data, tag
