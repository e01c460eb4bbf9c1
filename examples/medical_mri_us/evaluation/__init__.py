"""Scores of synthesis against the truth, always by a named protocol."""

__all__ = [
    "ALPHA",
    "BASELINE",
    "FORMAT",
    "INTERVALS",
    "PROTOCOLS",
    "SPREAD_LIMIT",
    "SUBSETS",
    "Cell",
    "Metric",
    "Protocol",
    "Scores",
    "Trained",
    "about_data",
    "about_models",
    "all_subsets",
    "best_cells",
    "cell_means",
    "choose",
    "choose_device",
    "compare",
    "cover_subject",
    "coverage_means",
    "cross_modal_gain",
    "evaluate",
    "is_published",
    "load_one_by_one",
    "load_trained",
    "make_view",
    "mean_images",
    "note",
    "parse_protocols",
    "predict",
    "resolved",
    "score_all",
    "score_baseline",
    "score_subject",
    "signed_rank",
    "summary",
    "synthesise",
    "unavailable",
    "write_cases",
    "write_evaluation",
    "write_tables",
]

from .baseline import mean_images
from .coverage import INTERVALS, cover_subject, coverage_means, resolved
from .files import FORMAT, write_cases, write_evaluation
from .gain import Cell, cross_modal_gain, evaluate
from .models import Trained, choose_device, load_trained
from .protocols import PROTOCOLS, Metric, Protocol, parse_protocols, unavailable
from .runs import about_data, about_models
from .scores import BASELINE, Scores, cell_means, score_baseline, score_subject
from .statistics import ALPHA, compare, signed_rank
from .subsets import SUBSETS, all_subsets, is_published
from .synthesis import predict, synthesise
from .tables import best_cells, note, summary, write_tables
from .views import choose, make_view
from .volumes import SPREAD_LIMIT
from .whole import load_one_by_one, score_all
