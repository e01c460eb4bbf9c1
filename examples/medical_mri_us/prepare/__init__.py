"""From releases of real data, or your own images, to aligned cases with an index."""

from mmpoe.extras import needs

with needs("medical"):
    from .layouts import describe, recognise
    from .own import find_own
    from .release import prepare_all
    from .remind import find_remind
    from .resect import find_resect, read_tag
    from .segmentation import read_segmentation
    from .splits import read_split
    from .tcia import find_tcia
    from .transforms import Registrations, read_transform

__all__ = [
    "Registrations",
    "describe",
    "find_own",
    "find_remind",
    "find_resect",
    "find_tcia",
    "prepare_all",
    "read_segmentation",
    "read_split",
    "read_tag",
    "read_transform",
    "recognise",
]
