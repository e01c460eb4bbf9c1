"""Which modalities a patient has: the patterns of ReMIND."""

import numpy as np
import numpy.typing as npt

from examples.medical_mri_us.checks import check_choice, check_integer

__all__ = ["MISSINGNESS", "REMIND_FILES", "draw_patterns", "pattern_probabilities"]

REMIND_FILES = {
    (True, True, True, False): 52,
    (True, False, True, False): 34,
    (True, True, True, True): 8,
    (True, True, False, True): 4,
    (True, False, True, True): 3,
    (True, True, False, False): 2,
}
"""How many cases of ReMIND have which of (us, t2, cet1, flair).

Counted from the file names of the registrations that were published for ReMIND with MMHVAE
(Dorent et al.): 103 cases with a pre-dura ultrasound; T2 means a SPACE sequence, ceT1 and FLAIR
mean 3-D ones. Counting 2-D sequences too would leave far fewer gaps."""

MISSINGNESS = ("remind-files", "paper-87")
"""The names that `draw_patterns` takes.

`remind-files` draws the six patterns in proportion to `REMIND_FILES`; 8 of 103 are complete.
`paper-87` follows the 87 % of incomplete cases that the paper states, 99 of 114: a patient is
complete with probability 15/114, otherwise one of the five incomplete patterns of `REMIND_FILES`
is drawn in proportion."""


def pattern_probabilities(name: str) -> dict[tuple[bool, ...], float]:
    """Returns the probability of every pattern that can occur.

    Example:
        >>> probabilities = pattern_probabilities("paper-87")
        >>> round(114 * probabilities[True, True, True, True])
        15
    """
    check_choice("name", name, MISSINGNESS)
    total = sum(REMIND_FILES.values())
    if name == "remind-files":
        return {pattern: count / total for pattern, count in REMIND_FILES.items()}
    incomplete = total - REMIND_FILES[True, True, True, True]
    return {
        pattern: 15 / 114 if all(pattern) else 99 / 114 * count / incomplete
        for pattern, count in REMIND_FILES.items()
    }


def draw_patterns(name: str, n: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Draws which modalities are present, independently for each patient.

    Arguments:
        name: One of `MISSINGNESS`.
        n: The number of patients.
        rng: The source of randomness.

    Returns:
        Whether a patient has (us, t2, cet1, flair), with shape (n, 4).
    """
    probabilities = pattern_probabilities(name)
    n = check_integer("n", n, 0)
    patterns = np.array(list(probabilities), dtype=bool)
    return patterns[rng.choice(len(patterns), size=n, p=list(probabilities.values()))]
