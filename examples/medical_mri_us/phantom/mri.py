"""Magnetic resonance images of the phantom: signal equations, then what a scanner adds."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .anatomy import Anatomy
from .deformation import smooth_noise
from .probe import ProbeGrid
from .tissues import Array, mix, tissue_index, tissue_values

__all__ = [
    "Relaxation",
    "add_rician_noise",
    "csf_nulling_ti",
    "inversion_recovery",
    "mprage",
    "render_mri",
    "spgr",
    "spin_echo",
]

Values: TypeAlias = npt.NDArray[np.float64]

RELAXIVITY_1 = 4.5e-3
"""Longitudinal relaxivity of the contrast agent, 1/(mM ms); Rohrer et al., Invest. Radiol.
40:715 (2005), give 3 to 5 per mM and second for the usual agents."""
RELAXIVITY_2 = 5.5e-3
"""Transverse relaxivity of the contrast agent, 1/(mM ms)."""


@dataclass(frozen=True)
class Relaxation:
    """The magnetic properties of all tissues of one patient, in the order of the table."""

    t1: Values
    """Longitudinal relaxation times, ms."""
    t2: Values
    """Transverse relaxation times, ms."""
    proton_density: Values
    """Proton densities relative to water."""

    @classmethod
    def of_patient(cls, rng: np.random.Generator) -> "Relaxation":
        """Varies the values of the table by a few per cent, mostly for all tissues alike."""
        t1, t2, density = (tissue_values(name) for name in ("t1", "t2", "proton_density"))
        return cls(
            t1=t1 * rng.normal(1, 0.05) * rng.normal(1, 0.02, len(t1)),
            t2=t2 * rng.normal(1, 0.06) * rng.normal(1, 0.03, len(t2)),
            proton_density=density * rng.normal(1, 0.015, len(density)),
        )

    def with_contrast(self, dose: float) -> "Relaxation":
        r"""Shortens the times by gadolinium, :math:`1/T_i' = 1/T_i + r_i c`.

        Arguments:
            dose: The dose relative to the one of the tissue table.
        """
        concentration = dose * tissue_values("gadolinium")
        return Relaxation(
            t1=1 / (1 / self.t1 + RELAXIVITY_1 * concentration),
            t2=1 / (1 / self.t2 + RELAXIVITY_2 * concentration),
            proton_density=self.proton_density,
        )


def spin_echo(tissue: Relaxation, *, tr: float, te: float) -> Values:
    r"""Signal of a spin echo, :math:`\rho (1 - e^{-TR/T_1}) e^{-TE/T_2}`; times in ms."""
    recovered = 1 - np.exp(-tr / tissue.t1)
    return tissue.proton_density * recovered * np.exp(-te / tissue.t2)


def inversion_recovery(tissue: Relaxation, *, tr: float, te: float, ti: float) -> Values:
    r"""Signal of an inversion recovery spin echo (FLAIR); times in ms.

    .. math:: \rho\, | 1 - 2 e^{-TI/T_1} + e^{-TR/T_1} |\, e^{-TE/T_2}
    """
    recovered = np.abs(1 - 2 * np.exp(-ti / tissue.t1) + np.exp(-tr / tissue.t1))
    return tissue.proton_density * recovered * np.exp(-te / tissue.t2)


def csf_nulling_ti(t1: float, tr: float) -> float:
    r"""Inversion time at which a tissue gives no signal, ms.

    .. math:: TI = T_1 (\log 2 - \log(1 + e^{-TR/T_1}))

    Example:
        >>> round(csf_nulling_ti(t1=4200.0, tr=9000.0))
        2445
    """
    return float(t1 * (np.log(2) - np.log1p(np.exp(-tr / t1))))


def mprage(tissue: Relaxation, *, tr: float, ti: float) -> Values:
    r"""Signal of an inversion-prepared gradient echo; times in ms.

    .. math:: \rho\, \left| 1 - \frac{2 e^{-TI/T_1}}{1 + e^{-TR/T_1}} \right|

    with the echo train neglected.
    """
    recovered = np.abs(1 - 2 * np.exp(-ti / tissue.t1) / (1 + np.exp(-tr / tissue.t1)))
    return tissue.proton_density * recovered


def spgr(tissue: Relaxation, *, tr: float, te: float, flip: float) -> Values:
    r"""Signal of a spoiled gradient echo; times in ms, flip angle in radians.

    .. math:: \rho\, \sin\alpha\, \frac{1 - E_1}{1 - \cos\alpha\, E_1}\, e^{-TE/T_2},
        \qquad E_1 = e^{-TR/T_1}
    """
    e1 = np.exp(-tr / tissue.t1)
    steady = np.sin(flip) * (1 - e1) / (1 - np.cos(flip) * e1)
    return tissue.proton_density * steady * np.exp(-te / tissue.t2)


def add_rician_noise(rng: np.random.Generator, image: Array, sigma: float) -> Array:
    r"""Returns the magnitude :math:`|s + n|` of a signal in complex Gaussian noise.

    Arguments:
        rng: The source of randomness.
        image: The noise-free magnitude :math:`s`.
        sigma: The standard deviation of the real and of the imaginary part of :math:`n`.
    """
    real = image + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.hypot(real, imaginary)


def render_mri(
    rng: np.random.Generator, anatomy: Anatomy, grid: ProbeGrid
) -> tuple[dict[str, Array], dict[str, dict[str, float | str]]]:
    """Scans a patient three times: T2, contrast-enhanced T1 and FLAIR.

    Returns:
        The images by name, in arbitrary units with white matter at a few hundred, and the
        settings of each sequence.
    """
    tissue = Relaxation.of_patient(rng)
    signals: dict[str, Values] = {}
    settings: dict[str, dict[str, float | str]] = {}

    tr, te = rng.uniform(3000, 4000), rng.uniform(90, 120)
    signals["t2"] = spin_echo(tissue, tr=tr, te=te)
    settings["t2"] = {"sequence": "spin echo", "tr_ms": tr, "te_ms": te}

    dose = rng.uniform(0.7, 1.3)
    enhanced = tissue.with_contrast(dose)
    if rng.random() < 0.6:
        tr, ti = rng.uniform(1900, 2300), rng.uniform(850, 1000)
        signals["cet1"] = mprage(enhanced, tr=tr, ti=ti)
        settings["cet1"] = {"sequence": "MPRAGE", "tr_ms": tr, "ti_ms": ti, "dose": dose}
    else:
        tr, flip = rng.uniform(7, 10), rng.uniform(12, 20)
        signals["cet1"] = spgr(enhanced, tr=tr, te=3.0, flip=np.deg2rad(flip))
        settings["cet1"] = {"sequence": "SPGR", "tr_ms": tr, "flip_deg": flip, "dose": dose}

    tr, te = rng.uniform(5000, 9000), rng.uniform(100, 140)
    ti = csf_nulling_ti(tissue.t1[tissue_index("csf")], tr) * rng.uniform(0.97, 1.03)
    signals["flair"] = inversion_recovery(tissue, tr=tr, te=te, ti=ti)
    settings["flair"] = {"sequence": "FLAIR", "tr_ms": tr, "te_ms": te, "ti_ms": ti}

    # Full width at half maximum across the first axis, mm: some FLAIR have thick slices.
    thickness = {name: rng.uniform(0.8, 1.2) for name in signals}
    if rng.random() < 0.5:
        thickness["flair"] = rng.uniform(1.0, 3.0)
    images = {
        name: _scan(rng, signal, anatomy, grid, thickness[name])
        for name, signal in signals.items()
    }
    return images, settings


def _scan(
    rng: np.random.Generator,
    signal: Values,
    anatomy: Anatomy,
    grid: ProbeGrid,
    thickness: float,
) -> Array:
    """Turns one signal per tissue into an image: texture, blur, bias field, gain and noise."""
    voxel = np.array(grid.voxel)
    gain = 300 * np.exp(0.25 * rng.standard_normal())
    noise_level = rng.uniform(0.015, 0.045)
    image = mix(gain * signal / signal[tissue_index("white_matter")], anatomy.fractions)
    image *= 1 + 0.02 * smooth_noise(rng, grid.shape, 3.0 / voxel)
    image *= 1 + 0.02 * smooth_noise(rng, grid.shape, 1.2 / voxel)
    width_to_sigma = 1 / (2 * np.sqrt(2 * np.log(2)))
    blur = width_to_sigma * np.array([thickness, 1.0, 1.0]) / voxel
    image = ndimage.gaussian_filter(image, blur)
    image *= np.exp(0.18 * smooth_noise(rng, grid.shape, 50.0 / voxel))
    return add_rician_noise(rng, image, gain * noise_level)
