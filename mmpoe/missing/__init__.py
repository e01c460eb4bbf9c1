r"""Missing modalities: batches, masks, subsets and mechanisms. True always means observed."""

__all__ = [
    "Batch",
    "as_mask",
    "collate",
    "from_multivae",
    "from_nan",
    "mar",
    "mcar",
    "mnar",
    "pack",
    "patterns",
    "random_subsets",
    "sample_subsets",
    "subsets",
]

# names imported as themselves are for the library's other packages, and not public
from ._checks import check_finite as check_finite
from ._checks import check_modalities as check_modalities
from ._checks import check_names as check_names
from ._checks import check_observed as check_observed
from ._checks import check_within as check_within
from .batch import Batch
from .batch import check_valid as check_valid
from .batch import context_of as context_of
from .batch import held_entries as held_entries
from .batch import valid_of as valid_of
from .batch import with_valid as with_valid
from .collate import collate, from_multivae, from_nan
from .masks import as_mask
from .masks import fill as fill
from .mechanisms import mar, mcar, mnar, patterns
from .sampling import random_subsets, sample_subsets
from .subsets import Pairs as Pairs
from .subsets import distinct_pairs as distinct_pairs
from .subsets import pack, subsets
