"""Tissues of the phantom: eleven, each with its magnetic and acoustic properties."""

from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["TISSUES", "TISSUE_NAMES", "Array", "Tissue", "mix", "tissue_index", "tissue_values"]

Array: TypeAlias = npt.NDArray[np.floating]
"""Volumes are single precision, short vectors may be double."""


@dataclass(frozen=True)
class Tissue:
    r"""The properties of one tissue.

    The relaxation times lie between the 1.5 T and 3 T values of Stanisz et al., Magnetic Resonance
    in Medicine 54:507 (2005), the acoustic ones in the soft-tissue range of Duck, Physical
    Properties of Tissue (1990). Lesion values and all echogenicities were set by eye, so that the
    pictures look like those of an operating theatre.
    """

    t1: float
    """Longitudinal relaxation time, ms, without contrast agent."""
    t2: float
    """Transverse relaxation time, ms, without contrast agent."""
    proton_density: float
    """Proton density relative to water."""
    gadolinium: float
    """Concentration of contrast agent after a normal dose, mM."""
    echogenicity: float
    """Amplitude of the diffuse backscatter, dB."""
    impedance: float
    """Acoustic impedance, MRayl."""
    attenuation: float
    """Acoustic attenuation, dB/cm/MHz."""


TISSUES: dict[str, Tissue] = {
    #                     T1    T2    PD   Gd    dB    MRayl dB/cm/MHz
    "csf": Tissue(4200, 1500, 1.00, 0.00, -48, 1.51, 0.02),
    "grey_matter": Tissue(1450, 99, 0.84, 0.02, -27, 1.57, 0.55),
    "white_matter": Tissue(900, 72, 0.72, 0.01, -22, 1.60, 0.70),
    "oedema": Tissue(1500, 150, 0.88, 0.03, -8, 1.58, 0.55),
    "tumour": Tissue(1700, 135, 0.88, 0.10, -2, 1.62, 0.80),
    "enhancing_rim": Tissue(1500, 120, 0.86, 0.80, 1, 1.63, 0.85),
    "necrosis": Tissue(2600, 380, 0.96, 0.08, -34, 1.53, 0.20),
    # Blood: what flows on before it is read out is dark in T2, here by a short time.
    "vessel": Tissue(1900, 30, 0.85, 1.20, -30, 1.58, 0.20),
    # Pia and arachnoid with their small vessels make sulci bright in ultrasound.
    "pia": Tissue(3200, 600, 0.95, 0.06, 3, 1.55, 0.40),
    "dura": Tissue(900, 40, 0.60, 0.35, 6, 1.75, 3.00),
    "choroid_plexus": Tissue(1700, 140, 0.86, 0.45, 0, 1.60, 1.20),
}

TISSUE_NAMES = tuple(TISSUES)


def tissue_index(name: str) -> int:
    """Returns the row of a tissue in every stack of fractions."""
    return TISSUE_NAMES.index(name)


def tissue_values(field: str) -> npt.NDArray[np.float64]:
    """Returns one property of all tissues, in the order of `TISSUE_NAMES`.

    Example:
        >>> tissue_values("t2")[tissue_index("white_matter")].item()
        72.0
    """
    names = [known.name for known in fields(Tissue)]
    if field not in names:
        raise ValueError(f"'field' should be one of {', '.join(names)}, but is {field!r}.")
    return np.array([getattr(tissue, field) for tissue in TISSUES.values()], dtype=np.float64)


def mix(values: npt.NDArray[np.floating], fractions: Array) -> Array:
    r"""Averages one property over the tissues of each voxel, :math:`\sum_t f_t v_t`.

    A plain sum, not a matrix product: its result does not depend on how many threads a BLAS has.

    Arguments:
        values: One value :math:`v_t` per tissue, with shape :math:`(T)`.
        fractions: The partial volumes :math:`f_t`, with shape :math:`(T, *)`.

    Returns:
        The mixture, with shape :math:`(*)`.
    """
    total = np.zeros(fractions.shape[1:], dtype=np.float32)
    for value, fraction in zip(values.astype(np.float32), fractions, strict=True):
        total += value * fraction
    return total
