"""The transforms of ReMIND that ship with the published MMHVAE, and how to chain them."""

from __future__ import annotations

__all__ = ["Registrations", "read_transform"]

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from examples.medical_mri_us.data.foreign import walled
from examples.medical_mri_us.data.geometry import LPS_TO_RAS, Affine

PROBES = np.array([[0, 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, 100], [31.0, -47, 83]])
"""Points, mm: four give an affine map, the last one tells whether it is one."""


def read_transform(path: Path) -> Affine:
    """Reads an ITK transform, a composite one too, as a (4, 4) matrix between points, RAS.

    Raises:
        ValueError: If the file is no transform, or one that is not affine.
    """
    with walled(path, " as a transform"):
        transform = sitk.ReadTransform(str(path))
        moved = np.array([transform.TransformPoint(p.tolist()) for p in PROBES])
    matrix = np.eye(4)
    matrix[:3, 3] = moved[0]
    matrix[:3, :3] = (moved[1:4] - moved[0]).T / 100
    if not np.allclose(matrix[:3, :3] @ PROBES[4] + matrix[:3, 3], moved[4], atol=1e-6):
        raise ValueError(f"{path} should be an affine transform, but bends space.")
    if not abs(np.linalg.det(matrix)) > 1e-9:
        raise ValueError(f"{path} should be a transform that can be inverted, but is singular.")
    return LPS_TO_RAS @ matrix @ LPS_TO_RAS


@dataclass(frozen=True)
class Registrations:
    """The folder of transforms: ``affine/CaseNNN/*.tfm`` and ``rigid/CaseNNN/*.tfm``.

    An affine file says where points of the reference MR lie in the ultrasound; a rigid file where
    points of another MR lie in the reference. From ultrasound to any MR one goes backwards.
    """

    folder: Path
    references: dict[str, str]
    """The reference MR of cases, without the ending of files."""

    @classmethod
    def find(cls, folder: Path, *others: Path) -> Registrations:
        """Finds the transforms in a folder, and ``refs_files.csv`` there, above, or elsewhere."""
        if not (folder / "affine").is_dir():
            raise ValueError(
                f"'transforms' should be the folder with affine/ and rigid/, but {folder} is not."
            )
        references: dict[str, str] = {}
        for place in (folder, *others, folder.parent):
            table = place / "refs_files.csv"
            if table.is_file():
                with table.open(newline="", encoding="utf-8-sig") as file:
                    for row in csv.reader(file):
                        if len(row) >= 3 and row[0] and row[2]:
                            references[row[0]] = _stem(row[2])
                break
        return cls(folder, references)

    def ultrasound(self, case: str) -> tuple[Path, str]:
        """Returns the affine file of a case, and the name of its reference MR.

        Raises:
            ValueError: If there is no such file, or several that nothing decides between.
        """
        files = sorted((self.folder / "affine" / case).glob("*-to-*.tfm"))
        named = {_stem(f.name).rpartition("-to-")[2]: f for f in files}
        wanted = self.references.get(case)
        if wanted is not None:
            if wanted not in named:
                raise ValueError(f"there is no affine transform of {wanted} in {self.folder}.")
            return named[wanted], wanted
        if len(named) != 1:
            raise ValueError(
                f"there should be one affine transform in {self.folder / 'affine' / case}, but "
                f"there are {len(named)}."
            )
        ((reference, file),) = named.items()
        return file, reference

    def knows(self, case: str, name: str) -> bool:
        """Whether an MR of a case is the reference, or registered to it."""
        reference = self.ultrasound(case)[1]
        return name == reference or self._rigid(case, reference, name).is_file()

    def chain(self, case: str, name: str) -> Affine:
        r"""Returns the matrix from points of the ultrasound to points of an MR.

        With :math:`A` from the reference to the ultrasound and :math:`Q` from the MR to the
        reference, it is :math:`Q^{-1} A^{-1}`, or :math:`A^{-1}` for the reference itself.
        """
        file, reference = self.ultrasound(case)
        to_reference = np.asarray(np.linalg.inv(read_transform(file)), np.float64)
        if name == reference:
            return to_reference
        rigid = read_transform(self._rigid(case, reference, name))
        return np.asarray(np.linalg.solve(rigid, to_reference), np.float64)

    def _rigid(self, case: str, reference: str, name: str) -> Path:
        return self.folder / "rigid" / case / f"{case}-{reference}-to-{name}.tfm"


def _stem(name: str) -> str:
    for ending in (".nrrd", ".tfm", ".nii.gz"):
        name = name.removesuffix(ending)
    return name
