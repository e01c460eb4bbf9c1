"""The anatomies that patients are deformations of: the MNI average brain, and Colin27."""

import importlib.util
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from examples.medical_mri_us.checks import check_choice
from mmpoe.training import sweep, write_file

from .cache import GENERATOR_VERSION, cache_folder, ensure_writable
from .colin import read_colin27
from .tissues import Array

__all__ = ["ANATOMIES", "CREDIT", "CREDITS", "Atlas", "build_atlas", "load_atlas"]

CREDIT = (
    "Anatomy: MNI ICBM 152 nonlinear atlas, version 2009a (Fonov et al., NeuroImage "
    "47:S102, 2009; Fonov et al., NeuroImage 54:313, 2011), McConnell Brain Imaging Centre, "
    "Montreal Neurological Institute, McGill University; the copy that nilearn (BSD-3) installs."
)

CREDITS = {
    "mni": CREDIT,
    "colin27": (
        "Anatomy: Colin27, 27 scans of one person (Holmes et al., Journal of Computer Assisted "
        "Tomography 22:324, 1998); the copy of Debian's mricron-data (BSD-3)."
    ),
}
"""The source of each anatomy."""

ANATOMIES = ("mni", "colin27", "both")
"""The anatomies of data sets: the average of 152 people, one person, or either at random."""

_MAPS = ("csf", "grey", "white", "ventricle", "falx")


@dataclass(frozen=True)
class Atlas:
    """Tissue maps on a 1 mm grid, and the places where a tumour or a probe may go."""

    name: str
    """The key of `CREDITS`."""
    maps: np.ndarray
    """Tissue fractions, 0..255 for 0..1, one volume per name of: csf, grey, white, ventricle
    (the part of csf that is ventricle), falx."""
    origin: Array
    """The position of voxel (0, 0, 0), mm, in the right-anterior-superior world of the atlas."""
    tumour_sites: Array
    """White matter 10 to 34 mm deep, above the tentorium, off the midline: (N, 3), mm."""
    surface: Array
    """Surface of the brain where a craniotomy may be: (M, 3), mm."""

    @property
    def upper(self) -> Array:
        """The position of the last voxel, mm."""
        return self.origin + np.array(self.maps.shape[1:], dtype=np.float32) - 1

    def sample(self, name: str, points: Array) -> Array:
        r"""Interpolates one map at points with shape :math:`(3, *)` in mm; 0 outside."""
        index = points - self.origin.reshape((3,) + (1,) * (points.ndim - 1))
        volume = self.maps[_MAPS.index(name)]
        sampled = ndimage.map_coordinates(volume, index, output=np.float32, order=1)
        return sampled / np.float32(255)


def load_atlas(name: str = "mni") -> Atlas:
    """Reads an atlas from the cache folder, where the first call puts it (some seconds).

    A file that is damaged is replaced.

    Arguments:
        name: `mni` or `colin27`.

    Raises:
        ModuleNotFoundError: If nilearn, whose wheel brings the MNI template, is not installed.
        FileNotFoundError: If mricron-data, which brings Colin27, is not installed.
        CacheError: If the cache folder cannot be written.
    """
    check_choice("name", name, CREDITS)
    file = cache_folder("phantom") / f"atlas-{name}-v{GENERATOR_VERSION}.npz"
    stored = _read_stored(file)
    if stored is not None:
        return stored
    ensure_writable(file.parent)
    atlas = build_atlas(name)
    content = io.BytesIO()
    np.savez_compressed(content, **vars(atlas))
    sweep(file.parent)
    write_file(file, content.getvalue())
    return atlas


def _read_stored(file: Path) -> Atlas | None:
    """Reads the atlas that a former call has left, None if there is none or it is damaged."""
    try:
        with file.open("rb") as stream, np.load(stream) as stored:
            fields = {name: stored[name] for name in stored.files}
        return Atlas(**{**fields, "name": str(fields["name"])})
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error):
        return None


def build_atlas(name: str = "mni") -> Atlas:
    """Derives an atlas from the template's T1 image and its tissue probabilities."""
    if name == "colin27":
        (csf, grey, white), affine = read_colin27()
    else:
        t1, affine = _read_template("t1")
        grey = _read_template("gm")[0] / 255
        white = _read_template("wm")[0] / 255
        csf, grey, white = _restore_sulci(_sharpen(t1 > 0, grey, white), t1)
    brain = ndimage.binary_closing(csf + grey + white > 0.5, iterations=3)
    brain = np.asarray(ndimage.binary_fill_holes(brain))
    filled = np.argwhere(brain)
    lower, upper = np.maximum(filled.min(0) - 3, 0), filled.max(0) + 4
    box = tuple(slice(start, stop) for start, stop in zip(lower, upper, strict=True))
    csf, grey, white, brain = csf[box], grey[box], white[box], brain[box]
    origin = affine[:3, 3] + lower

    depth = np.asarray(ndimage.distance_transform_edt(np.pad(brain, 1)))[1:-1, 1:-1, 1:-1]
    ventricle = _find_ventricle(csf, depth)
    x, y, z = (
        np.arange(n, dtype=np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        + origin[axis]
        for axis, n in enumerate(brain.shape)
    )
    falx = _place_falx(white, brain & ~ventricle, x, y, z)
    sites = (white > 0.7) & (depth > 10) & (depth < 34) & (z > 5) & (np.abs(x) > 14)
    surface = (depth >= 1) & (depth < 2) & (z > -5) & (np.abs(x) > 6)
    maps = np.stack([csf, grey, white, ventricle * csf, falx])
    return Atlas(
        name=name,
        maps=np.rint(255 * np.clip(maps, 0, 1)).astype(np.uint8),
        origin=origin.astype(np.float32),
        tumour_sites=(np.argwhere(sites)[::27] + origin).astype(np.float32),
        surface=(np.argwhere(surface)[::7] + origin).astype(np.float32),
    )


def _read_template(kind: str) -> tuple[Array, np.ndarray]:
    """Reads a template volume out of the installed nilearn package without importing it."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "The phantom deforms the MNI template that comes with nilearn, which is not installed:"
            " install the 'medical' extra, for example with: pip install 'mmpoe[medical]'"
        )
    folder = Path(spec.origin).parent / "datasets" / "data"
    image = nib.Nifti1Image.from_filename(
        folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    )
    affine = np.asarray(image.affine)
    if not np.array_equal(affine[:3, :3], np.eye(3)):
        raise RuntimeError("The MNI template of nilearn is no longer on the 1 mm grid expected.")
    return np.asarray(image.dataobj, dtype=np.float32), affine


def _sharpen(inside: np.ndarray, grey: Array, white: Array) -> Array:
    """Undoes some of the blur of a population average: tissue fractions to a power, rescaled."""
    mask = np.asarray(ndimage.binary_fill_holes(inside))
    fractions = np.stack([np.clip(mask - grey - white, 0, 1), grey, white]) ** 1.6
    fractions *= mask / np.maximum(fractions.sum(0), 1e-6)
    return fractions.astype(np.float32)


def _restore_sulci(fractions: Array, t1: Array) -> tuple[Array, Array, Array]:
    """Turns narrow dark valleys of the T1 image back into the CSF that averaging has lost."""
    csf, grey, white = fractions
    reference = np.median(t1[grey > 0.6])
    valley = np.asarray(ndimage.black_tophat(ndimage.gaussian_filter(t1, 0.4), size=(5, 5, 5)))
    valley /= reference
    parenchyma = grey + white
    opened = np.clip(4.5 * (valley - 0.10), 0, 0.95) * parenchyma * (csf + parenchyma > 0.2)
    kept = 1 - opened / np.maximum(parenchyma, 1e-3)
    return csf + opened, grey * kept, white * kept


def _find_ventricle(csf: Array, depth: np.ndarray) -> np.ndarray:
    """Returns the largest body of CSF deep in the brain."""
    labels = np.zeros(csf.shape, dtype=np.int32)
    ndimage.label(ndimage.binary_opening((csf > 0.5) & (depth > 22)), output=labels)
    largest = labels == 1 + np.argmax(np.bincount(labels[labels > 0] - 1))
    return np.asarray(ndimage.binary_dilation(largest, iterations=2), dtype=bool) & (csf > 0.2)


def _place_falx(
    white: Array, allowed: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray
) -> Array:
    """Draws a membrane about 2 mm thick in the midline, clear of the corpus callosum."""
    away = np.asarray(ndimage.gaussian_filter(white, 2.0)) < 0.25
    fissure = (z > 8) | (((y > 25) | (y < -60)) & (z > -10))
    return np.exp(-0.5 * (x / 0.8) ** 2) * (away & allowed & fissure)
