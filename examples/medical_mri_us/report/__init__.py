"""Results to look at: the demo's pages, and the interactive report of an evaluation."""

__all__ = ["MR", "Facts", "draw_panel", "draw_training", "write_report"]

from .demo import MR, Facts, write_report
from .panel import draw_panel, draw_training
