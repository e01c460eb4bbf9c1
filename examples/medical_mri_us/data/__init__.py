"""From an index of image files to normalised slices, for training and for evaluation."""

from mmpoe.extras import needs

with needs("medical"):
    from .background import fill_slices, remove_background
    from .dicom import Series, list_series, read_picture, read_series
    from .grids import Grid, axis_codes, reorient, resample, same_grid
    from .images import Image, ImageError, Mask, Volume, read_image, write_image
    from .index import Case, read_index
    from .normalise import MEDIANS, normalise
    from .orientation import planes_of, turn_alike, turned
    from .sampling import WeightedBatches
    from .slices import Slices, TargetSlices, batch_slices, batch_targets, neighbours
    from .stored import StoredSubject, store_subject, store_subjects
    from .subjects import CaseError, Subject, load_subject, load_subjects
    from .summary import check_training, missingness_table

__all__ = [
    "MEDIANS",
    "Case",
    "CaseError",
    "Grid",
    "Image",
    "ImageError",
    "Mask",
    "Series",
    "Slices",
    "StoredSubject",
    "Subject",
    "TargetSlices",
    "Volume",
    "WeightedBatches",
    "axis_codes",
    "batch_slices",
    "batch_targets",
    "check_training",
    "fill_slices",
    "list_series",
    "load_subject",
    "load_subjects",
    "missingness_table",
    "neighbours",
    "normalise",
    "planes_of",
    "read_image",
    "read_index",
    "read_picture",
    "read_series",
    "remove_background",
    "reorient",
    "resample",
    "same_grid",
    "store_subject",
    "store_subjects",
    "turn_alike",
    "turned",
    "write_image",
]
