"""Results to look at: the demo's pages, and the interactive report of an evaluation."""

__all__ = [
    "MR",
    "Evaluation",
    "EvaluationError",
    "Facts",
    "draw_panel",
    "draw_training",
    "make_page",
    "read_evaluation",
    "write_report",
]

from .demo import MR, Facts, write_report
from .page import make_page
from .panel import draw_panel, draw_training
from .results import Evaluation, EvaluationError, read_evaluation
