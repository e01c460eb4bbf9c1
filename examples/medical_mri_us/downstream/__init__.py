"""Downstream tasks of synthetic images: segmenting tumours, registering MR to ultrasound.

Neither task knows how images are made: a `Synthesiser` says what can be made, and makes it.
"""

from mmpoe.extras import needs

with needs("medical"):
    from .cases import ANY_MR, Chosen, choose_cases
    from .registration import (
        BINS,
        Motion,
        Outcome,
        draw_motion,
        landmarks,
        move,
        register,
        score_registration,
    )
    from .segmentation import (
        Examples,
        Score,
        build_network,
        score_volume,
        segment,
        train,
        tumour_ml,
        tumour_of,
    )
    from .tables import (
        NEAR,
        REFERENCE_LABELS,
        quartiles,
        registration_rows,
        registration_table,
        segmentation_row,
        segmentation_table,
        write_tables,
    )
    from .tasks import (
        REGISTRATION_REFERENCES,
        SEGMENTATION_REFERENCES,
        Synthesiser,
        below_gate,
        register_ultrasound,
        segment_tumours,
        training_volumes,
    )

__all__ = [
    "ANY_MR",
    "BINS",
    "NEAR",
    "REFERENCE_LABELS",
    "REGISTRATION_REFERENCES",
    "SEGMENTATION_REFERENCES",
    "Chosen",
    "Examples",
    "Motion",
    "Outcome",
    "Score",
    "Synthesiser",
    "below_gate",
    "build_network",
    "choose_cases",
    "draw_motion",
    "landmarks",
    "move",
    "quartiles",
    "register",
    "register_ultrasound",
    "registration_rows",
    "registration_table",
    "score_registration",
    "score_volume",
    "segment",
    "segment_tumours",
    "segmentation_row",
    "segmentation_table",
    "train",
    "training_volumes",
    "tumour_ml",
    "tumour_of",
    "write_tables",
]
