"""A phantom of brain tumour patients: ultrasound and three MR contrasts with known truth."""

from .anatomy import TUMOUR_LABELS
from .atlas import ANATOMIES, CREDIT, CREDITS, Atlas, load_atlas
from .cache import GENERATOR_VERSION, CacheError, cache_folder
from .dataset import INDEX_COLUMNS, cached_dataset, make_dataset
from .landmarks import LANDMARK_COLUMNS, Landmarks
from .missingness import (
    MISSINGNESS,
    REMIND_FILES,
    draw_patterns,
    given_enhancement,
    pattern_probabilities,
)
from .patient import Patient, default_slices, render_patient
from .sheet import draw_sheet
from .storage import write_bytes
from .tissues import TISSUE_NAMES, TISSUES

__all__ = [
    "ANATOMIES",
    "CREDIT",
    "CREDITS",
    "GENERATOR_VERSION",
    "INDEX_COLUMNS",
    "LANDMARK_COLUMNS",
    "MISSINGNESS",
    "REMIND_FILES",
    "TISSUES",
    "TISSUE_NAMES",
    "TUMOUR_LABELS",
    "Atlas",
    "CacheError",
    "Landmarks",
    "Patient",
    "cache_folder",
    "cached_dataset",
    "default_slices",
    "draw_patterns",
    "draw_sheet",
    "given_enhancement",
    "load_atlas",
    "make_dataset",
    "pattern_probabilities",
    "render_patient",
    "write_bytes",
]
