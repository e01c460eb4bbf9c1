"""Scores of synthesis against the truth, always by a named protocol."""

__all__ = [
    "BASELINE",
    "PROTOCOLS",
    "SUBSETS",
    "Cell",
    "Metric",
    "Protocol",
    "Scores",
    "all_subsets",
    "cell_means",
    "compare",
    "cover_subject",
    "coverage_means",
    "cross_modal_gain",
    "evaluate",
    "is_published",
    "mean_images",
    "parse_protocols",
    "predict",
    "score_baseline",
    "score_subject",
    "signed_rank",
    "synthesise",
    "unavailable",
]

from .baseline import mean_images
from .coverage import cover_subject, coverage_means
from .gain import Cell, cross_modal_gain, evaluate
from .protocols import PROTOCOLS, Metric, Protocol, parse_protocols, unavailable
from .scores import BASELINE, Scores, cell_means, score_baseline, score_subject
from .statistics import compare, signed_rank
from .subsets import SUBSETS, all_subsets, is_published
from .synthesis import predict, synthesise
