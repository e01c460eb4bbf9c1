"""Ultrasound images of the phantom: beams, reflections, speckle, attenuation, log compression."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .anatomy import Anatomy
from .deformation import smooth_noise
from .probe import Fan, ProbeGrid
from .sweep import compound, random_frames, sweep_bands
from .tissues import Array, mix, tissue_index, tissue_values

__all__ = ["UltrasoundSettings", "log_compress", "render_ultrasound", "speckle_envelope"]

_COUPLING_IMPEDANCE = 1.50  # MRayl, saline between the probe and the brain
_GAIN_COMPENSATION = 0.5  # dB/cm/MHz, one way, what the scanner assumes of tissue


@dataclass(frozen=True)
class UltrasoundSettings:
    """The probe and the knobs of the scanner."""

    frequency: float
    """MHz."""
    frames: int
    """The number of frames that each slice is compounded of."""
    focus: float
    """The depth of the focus, as a fraction of the reach of the beams."""
    dynamic_range: float
    """The range of the display, dB."""
    grey_level: float
    """The display value, 0..1, of the median of the brain."""
    compensation_error: float
    """Error of the time-gain compensation, dB/cm/MHz, there and back."""
    reverberation: float
    """The spacing of the near-field rings, mm."""

    @classmethod
    def random(cls, rng: np.random.Generator) -> "UltrasoundSettings":
        """Draws the settings of one patient."""
        return cls(
            frequency=float(rng.uniform(4.5, 8.0)),
            frames=int(rng.integers(2, 5)),
            focus=float(rng.uniform(0.35, 0.6)),
            dynamic_range=float(rng.uniform(48, 62)),
            grey_level=float(rng.uniform(0.22, 0.34)),
            compensation_error=float(rng.normal(0, 0.05)),
            reverberation=float(rng.uniform(1.2, 2.2)),
        )


def speckle_envelope(
    rng: np.random.Generator,
    amplitude: Array,
    near_width: tuple[float, float],
    far_width: tuple[float, float],
    defocus: Array,
    *,
    reflection: Array | float = 0.0,
) -> Array:
    r"""Envelope of the echo of many unresolved scatterers: fully developed speckle.

    .. math:: A = | h * (a\, n) + s |

    with complex circular Gaussian noise :math:`n`, scatterer amplitude :math:`a`, point spread
    function :math:`h` of unit energy and specular reflection :math:`s`. Where :math:`a` is
    constant and :math:`s = 0`, the envelope is Rayleigh distributed with :math:`E[A^2] = 2 a^2`
    and mean over standard deviation :math:`\sqrt{\pi / (4 - \pi)} \approx 1.91`.

    Arguments:
        rng: The source of randomness.
        amplitude: The scatterer amplitude :math:`a`, with shape :math:`(R, B)`: range, beam.
        near_width: Standard deviations of :math:`h` in the focus, samples along range and beam.
        far_width: The same far from the focus.
        defocus: From 0 in the focus to 1 far from it, broadcastable to :math:`(R, B)`.
        reflection: The specular reflection :math:`s`, broadcastable to :math:`(R, B)`.

    Returns:
        The envelope, with shape :math:`(R, B)`.
    """
    # The mean of two correlated responses keeps unit energy only after division by this norm.
    mixed_width = [np.sqrt((n**2 + f**2) / 2) for n, f in zip(near_width, far_width, strict=True)]
    overlap = _peak(mixed_width) / np.sqrt(_peak(near_width) * _peak(far_width))
    energy = (1 - defocus) ** 2 + defocus**2 + 2 * overlap * defocus * (1 - defocus)
    near_weight = (1 - defocus) / np.sqrt(energy * _peak(near_width))
    far_weight = defocus / np.sqrt(energy * _peak(far_width))
    intensity = np.zeros(amplitude.shape, dtype=np.float32)
    for specular in (reflection, 0.0):  # the real part, then the imaginary part
        echo = amplitude * rng.standard_normal(amplitude.shape, dtype=np.float32)
        near = ndimage.gaussian_filter(echo, near_width)
        far = ndimage.gaussian_filter(echo, far_width)
        intensity += (near_weight * near + far_weight * far + specular) ** 2
    return np.sqrt(intensity)


def _peak(width: tuple[float, float] | list[float]) -> float:
    """Returns the variance that white noise keeps after the blur."""
    variance = 1.0
    for sigma in width:
        reach = int(np.ceil(4 * sigma)) + 1
        impulse = np.zeros(2 * reach + 1)
        impulse[reach] = 1
        variance *= float((ndimage.gaussian_filter1d(impulse, sigma) ** 2).sum())
    return variance


def log_compress(
    decibel: Array, brain: npt.NDArray[np.bool_], setting: UltrasoundSettings
) -> Array:
    """Maps decibels to grey values 0..1, with the gain set for the median of the brain."""
    median = np.median(decibel[brain]) if brain.any() else np.float32(-25)
    grey = (decibel - median) / setting.dynamic_range + setting.grey_level
    return np.clip(grey, 0, 1).astype(np.float32)


def render_ultrasound(
    rng: np.random.Generator,
    anatomy: Anatomy,
    grid: ProbeGrid,
    fan: Fan,
    setting: UltrasoundSettings,
) -> Array:
    """Scans a patient slice by slice, each compounded of several frames.

    For each frame the slice is resampled to (range, beam), where a beam is a column, and back at
    the end.

    Returns:
        The image, 0..255, zero outside the fan, with shape (depth, lateral, slice).
    """
    maps = np.stack(_acoustic_maps(rng, anatomy, grid))
    maps = np.ascontiguousarray(np.moveaxis(maps, -1, 0))  # (S, 3, D, L)
    ranges = np.linspace(0, fan.reach, int(2.33 * grid.size), dtype=np.float32)  # mm
    angles = np.linspace(-fan.half_angle, fan.half_angle, int(0.84 * grid.size), dtype=np.float32)
    decibel = np.empty(grid.shape, dtype=np.float32)
    for k, frames in enumerate(random_frames(rng, grid.slices, setting.frames)):
        shots, beams = [], []
        for frame in frames:
            places = frame.pixels(fan, grid, ranges, angles)
            planes = np.stack(
                [ndimage.map_coordinates(m, places, order=1, mode="nearest") for m in maps[k]]
            )  # (3, R, B)
            contact = _edge_contact(rng, angles / fan.half_angle)
            echo = _beamform(rng, planes, contact, ranges, angles, setting)
            distance, angle = frame.polar(fan, grid)
            beam = (angle + fan.half_angle) / (angles[1] - angles[0])
            along = (distance - fan.radius) / (ranges[1] - ranges[0])
            shown = 20 * np.log10(echo + 1e-6) + np.float32(frame.gain)
            shots.append(ndimage.map_coordinates(shown, (along, beam), order=1, mode="nearest"))
            beams.append(angle)
        decibel[..., k] = compound(np.stack(shots), np.stack(beams), fan.half_angle)
    decibel += sweep_bands(rng, grid)
    inside = fan.contains(grid)[..., None]
    grey = log_compress(decibel, (anatomy.brain > 0.8) & inside, setting) * inside
    thick = 0.5 * 2.0 / grid.slice_spacing  # elevational beam width, about 1 mm
    return 255 * ndimage.gaussian_filter1d(grey, thick, axis=2)


def _acoustic_maps(
    rng: np.random.Generator, anatomy: Anatomy, grid: ProbeGrid
) -> tuple[Array, Array, Array]:
    """Returns scatterer amplitude, impedance (MRayl) and attenuation (dB/cm/MHz) of each voxel."""
    voxel = np.array(grid.voxel)
    decibel = tissue_values("echogenicity")
    decibel = decibel + rng.normal(0, 1.5, len(decibel))
    lesion_shift = rng.normal(2, 1.5)
    for name in ("tumour", "enhancing_rim", "oedema"):
        decibel[tissue_index(name)] += lesion_shift
    echogenicity = mix(10 ** (decibel / 20), anatomy.fractions)
    texture = 2.4 * smooth_noise(rng, grid.shape, 2.2 / voxel)  # dB
    texture += 2.0 * smooth_noise(rng, grid.shape, 7.0 / voxel)
    echogenicity *= 10 ** (texture / 20)
    impedance = mix(tissue_values("impedance"), anatomy.fractions)
    impedance += _COUPLING_IMPEDANCE * (1 - anatomy.brain)
    return echogenicity, impedance, mix(tissue_values("attenuation"), anatomy.fractions)


def _edge_contact(rng: np.random.Generator, position: Array) -> Array:
    """Returns the gain of each beam: the rim of a curved probe often lifts off the brain."""
    begins = rng.uniform(0.7, 1.0)
    loss = 0.9 * rng.uniform(0, 3) * np.clip(np.abs(position) - begins, 0, 1)
    return np.clip(1.15 - loss, 0.15, 1).astype(np.float32)


def _beamform(
    rng: np.random.Generator,
    planes: Array,
    contact: Array,
    ranges: Array,
    angles: Array,
    setting: UltrasoundSettings,
) -> Array:
    r"""Returns the envelope along the beams of one plane, with shape :math:`(R, B)`."""
    echogenicity, impedance, attenuation = planes
    step = ranges[1] - ranges[0]
    centimetre_megahertz = setting.frequency / 10  # per mm
    # An interface of impedances Z and Z + dZ reflects dZ / 2Z and lets 1 - (dZ / 2Z)^2 through.
    smooth = ndimage.gaussian_filter(impedance, (0.6, 0.4))
    jump = np.gradient(smooth, axis=0) / (2 * smooth)
    reflection = 34 * ndimage.gaussian_filter(np.abs(jump), (0.8, 0.6))
    passed = np.cumsum(np.log1p(-np.clip(4 * jump**2, 0, 0.6)), axis=0)
    compensation = (_GAIN_COMPENSATION - 0.5 * setting.compensation_error) * ranges[:, None]
    lost = 2 * (np.cumsum(attenuation, axis=0) * step - compensation) * centimetre_megahertz
    gain = np.exp(passed) * 10 ** (-lost / 20) * contact

    axial = 0.22 / step
    lateral = np.deg2rad([0.35, 0.85]) / (angles[1] - angles[0])
    defocus = np.clip(np.abs(ranges / ranges[-1] - setting.focus) / 0.5, 0, 1)[:, None]
    envelope = gain * speckle_envelope(
        rng,
        echogenicity,
        (axial, lateral[0]),
        (1.3 * axial, lateral[1]),
        defocus,
        reflection=reflection,
    )
    rings = 1 + 0.7 * np.cos(2 * np.pi * ranges / setting.reverberation)
    near_field = 0.05 * (np.exp(-ranges / 2.0) * rings)[:, None]
    noise = np.hypot(*rng.standard_normal((2, *envelope.shape), dtype=np.float32))
    floor_decibel = -76 + _GAIN_COMPENSATION * ranges[:, None] * centimetre_megahertz
    return envelope + near_field + 10 ** (floor_decibel / 20) * noise
