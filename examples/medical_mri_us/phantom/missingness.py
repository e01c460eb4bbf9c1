"""Missingness of modalities: the patterns of ReMIND."""

import numpy as np
import numpy.typing as npt

from examples.medical_mri_us.checks import check_choice, check_integer

__all__ = [
    "ENHANCING",
    "MISSINGNESS",
    "REMIND_FILES",
    "draw_patterns",
    "given_enhancement",
    "pattern_probabilities",
]

ENHANCING = 66 / 114
"""The share of enhancing tumours in the clinical table of ReMIND."""

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


def given_enhancement(
    probabilities: dict[tuple[bool, ...], float], enhancing: bool
) -> dict[tuple[bool, ...], float]:
    r"""Makes ceT1 go missing not at random: three times less often where the tumour enhances.

    The probability that ceT1 is absent is :math:`a / 3` for enhancing tumours and
    :math:`a (1 - e/3) / (1 - e)` for the others, where :math:`a` is that of `probabilities` and
    :math:`e` the share of enhancing tumours. Over both kinds the probability of every pattern
    stays the same, and so do the proportions among patterns that have, or lack, ceT1.

    Arguments:
        probabilities: The probability of every pattern (us, t2, cet1, flair).
        enhancing: Whether the tumour enhances.

    Returns:
        The probabilities given that it does, or does not.
    """
    absent = sum(p for pattern, p in probabilities.items() if not pattern[2])
    factor = 1 / 3 if enhancing else (1 - ENHANCING / 3) / (1 - ENHANCING)
    kept = (1 - factor * absent) / (1 - absent)
    return {pattern: p * (kept if pattern[2] else factor) for pattern, p in probabilities.items()}


def draw_patterns(
    name: str, n: int, rng: np.random.Generator, *, enhancing: bool | None = None
) -> npt.NDArray[np.bool_]:
    """Draws which modalities are present, independently for each patient.

    Arguments:
        name: One of `MISSINGNESS`.
        n: The number of patients.
        rng: The source of randomness.
        enhancing: Whether the tumours enhance, to make ceT1 depend on it as
            `given_enhancement` says; None for no dependence.

    Returns:
        Whether a patient has (us, t2, cet1, flair), with shape (n, 4).
    """
    probabilities = pattern_probabilities(name)
    n = check_integer("n", n, 0)
    if enhancing is not None:
        probabilities = given_enhancement(probabilities, enhancing)
    patterns = np.array(list(probabilities), dtype=bool)
    return patterns[rng.choice(len(patterns), size=n, p=list(probabilities.values()))]
