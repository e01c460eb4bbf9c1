"""A phantom of brain tumour patients: ultrasound and three MR contrasts with known truth."""

from .anatomy import TUMOUR_LABELS
from .atlas import CREDIT, Atlas, load_atlas
from .cache import GENERATOR_VERSION, CacheError, cache_folder
from .dataset import INDEX_COLUMNS, cached_dataset, make_dataset
from .missingness import MISSINGNESS, REMIND_FILES, draw_patterns, pattern_probabilities
from .patient import Patient, render_patient
from .tissues import TISSUE_NAMES, TISSUES

__all__ = [
    "CREDIT",
    "GENERATOR_VERSION",
    "INDEX_COLUMNS",
    "MISSINGNESS",
    "REMIND_FILES",
    "TISSUES",
    "TISSUE_NAMES",
    "TUMOUR_LABELS",
    "Atlas",
    "CacheError",
    "Patient",
    "cache_folder",
    "cached_dataset",
    "draw_patterns",
    "load_atlas",
    "make_dataset",
    "pattern_probabilities",
    "render_patient",
]
