"""Tiny copies of the layouts of ReMIND and RESECT: every image shows one known blob."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import pack_bits
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

BLOB = np.array([12.0, -31.0, 22.0])
"""Where the blob lies in the ultrasound, mm, LPS."""

WIDTH = 5.0
"""Its standard deviation, mm."""

RADIUS = 6.0
"""How far the labels reach: label 2 to the half of it, label 1 beyond, mm."""

TO_RAS = np.diag([-1.0, -1, 1, 1])


def rotation(*degrees):
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def matrix(linear, offset):
    full = np.eye(4)
    full[:3, :3], full[:3, 3] = linear, offset
    return full


AFFINE = matrix(rotation(8, -5, 11) @ np.diag([1.03, 0.98, 1.01]), [4, -7, 3])
"""From points of the reference MR to points of the ultrasound, LPS."""

RIGID = matrix(rotation(-6, 9, 4), [-3, 5, 8])
"""From points of another MR to points of the reference, LPS."""


def placed(shape, spacing, angles, centre):
    """An affine, LPS, that puts the middle of a volume somewhere, at an angle."""
    linear = rotation(*angles) @ np.diag(spacing)
    return matrix(linear, centre - linear @ ((np.array(shape) - 1) / 2))


def points(shape, affine):
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def distance(shape, affine, centre):
    return np.linalg.norm(points(shape, affine) - centre, axis=-1)


def blob(shape, affine, centre, *, low=40.0, high=180.0):
    return low + high * np.exp(-0.5 * (distance(shape, affine, centre) / WIDTH) ** 2)


def ball(shape, affine, centre):
    far = distance(shape, affine, centre)
    return ((far < RADIUS).astype(np.uint8) + (far < RADIUS / 2)).astype(np.uint8)


def ultrasound(shape, affine):
    """The blob on a dim background, with a border of zeros to crop."""
    image = np.zeros(shape)
    inner = (slice(2, -3), slice(3, -2), slice(1, -2))
    image[inner] = np.clip(blob(shape, affine, BLOB, low=20, high=200), 0, 255)[inner]
    return image.astype(np.uint8)


def itk(data, affine):
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def write_nrrd(path, data, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(itk(data, affine), str(path), useCompression=True)


def write_nifti(path, data, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, TO_RAS @ affine).to_filename(path)


def itk_affine(full):
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(full[:3, :3].ravel().tolist())
    transform.SetTranslation(full[:3, 3].tolist())
    return transform


def write_tfm(path, full, *, composite=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = itk_affine(full)
    if composite:  # the part that is added last is applied first
        first = matrix(rotation(20, 0, -10), [9, 1, -4])
        parts = [itk_affine(full @ np.linalg.inv(first)), itk_affine(first)]
        transform = sitk.CompositeTransform(parts)
    sitk.WriteTransform(transform, str(path))


US_SHAPE = (30, 32, 28)
US_AFFINE = placed(US_SHAPE, (0.9, 0.9, 0.9), (10, 20, -15), np.add(BLOB, [1.5, -2, 1]))
REFERENCE_BLOB = (np.linalg.inv(AFFINE) @ [*BLOB, 1])[:3]
OTHER_BLOB = (np.linalg.inv(RIGID) @ [*REFERENCE_BLOB, 1])[:3]


def mr(shape, spacing, angles, centre):
    affine = placed(shape, spacing, angles, np.add(centre, [2.0, 1, -1]))
    return (blob(shape, affine, centre, low=-30) * 4).astype(np.int16), affine


def write_remind(root, transforms):
    """Four cases: complete, without T2 and annotations, without transforms, one in no split."""
    t2 = "3D_AX_T2_SPACE"
    for case, reference, others in (
        ("Case001", t2, ("3D_AX_T1_postcontrast-r", "3D_SAG_T2_FLAIR")),
        ("Case002", "3D_SAG_T1_postcontrast", ("3D_SAG_T2_FLAIR",)),
        ("Case003", t2, ()),
        ("Case0010", t2, ()),
    ):
        stem = f"{case}-preop-MR-{reference}"
        folder = root / "nrrd" / case
        us = f"{case}-intraop-US-pre_dura"
        write_nrrd(
            folder / "Intraop-US" / f"{us}.nrrd", ultrasound(US_SHAPE, US_AFFINE), US_AFFINE
        )
        image, affine = mr((34, 30, 40), (1.1, 1.3, 0.9), (-12, 4, 7), REFERENCE_BLOB)
        write_nrrd(folder / "Preop-MR" / f"{stem}.nrrd", image, affine)
        for decoy in ("2D_AX_T2_BLADE", "2D_AX_T2_FLAIR", "3D_SAG_T1_MP2RAGE"):
            name = f"{case}-preop-MR-{decoy}.nrrd"
            write_nrrd(
                folder / "Preop-MR" / name, image[:, :, ::8], affine @ np.diag([1, 1, 8, 1])
            )
        if case == "Case003":
            continue
        write_tfm(
            transforms / "affine" / case / f"{case}-{us}-to-{stem}.tfm",
            AFFINE,
            composite=case == "Case002",
        )
        for other in others:
            image, affine = mr((28, 36, 30), (1.2, 0.8, 1.4), (5, -9, 14), OTHER_BLOB)
            name = f"{case}-preop-MR-{other}"
            write_nrrd(folder / "Preop-MR" / f"{name}.nrrd", image, affine)
            write_tfm(transforms / "rigid" / case / f"{case}-{stem}-to-{name}.tfm", RIGID)
        if case == "Case001":  # a coarser and an unregistered one of the same kind
            name = f"{case}-preop-MR-3D_SAG_T1_postcontrast"
            coarse = image[::2], affine @ np.diag([2, 1, 1, 1])
            write_nrrd(folder / "Preop-MR" / f"{name}.nrrd", *coarse)
            write_tfm(transforms / "rigid" / case / f"{case}-{stem}-to-{name}.tfm", np.eye(4))
            name = f"{case}-preop-MR-3D_COR_T1_postcontrast"
            write_nrrd(
                folder / "Preop-MR" / f"{name}.nrrd", image, affine @ np.diag([0.5, 1, 1, 1])
            )
            shape, grid = (
                (40, 42, 38),
                placed((40, 42, 38), (0.7, 0.7, 0.7), (3, 2, 1), OTHER_BLOB),
            )
            name = f"{case}-preop-SEG-tumor-MR-{others[0]}"
            write_nrrd(
                folder / "Annotations" / f"{name}.nrrd", ball(shape, grid, OTHER_BLOB), grid
            )
            other = f"{case}-preop-SEG-cerebrum-MR-{reference}"
            empty = np.zeros(shape, np.uint8)
            write_nrrd(folder / "Annotations" / f"{other}.nrrd", empty, grid)


def write_refs(root):
    """The tables that name the reference MR and the segmentation of each case."""
    (root / "refs_files.csv").write_text(
        ",us,mr\n"
        "Case001,Case001-intraop-US-pre_dura.nrrd,Case001-preop-MR-3D_AX_T2_SPACE.nrrd\n"
        "Case002,Case002-intraop-US-pre_dura.nrrd,Case002-preop-MR-3D_SAG_T1_postcontrast.nrrd\n"
    )
    (root / "choice_target.csv").write_text(
        ",target\nCase001,Case001-preop-SEG-tumor-MR-3D_AX_T1_postcontrast-r\n"
    )


def header(kind, **tags):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = kind
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    file.PatientName, file.StudyDate = "", "20230901"
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    for name, value in tags.items():
        setattr(file, name, value)
    return file


def pixels(file, data):
    """Stores (frame, row, column) or (row, column)."""
    bits = 8 * data.dtype.itemsize
    file.Rows, file.Columns = data.shape[-2:]
    file.BitsAllocated = file.BitsStored = bits
    file.HighBit, file.PixelRepresentation = bits - 1, int(data.dtype.kind == "i")
    file.add_new("PixelData", "OW" if bits > 8 else "OB", data.tobytes())


def decimals(numbers):
    return [f"{n:.10g}"[:16] for n in np.ravel(numbers)]


def planes(affine):
    """Orientation, spacing between rows and between columns, and between slices."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing
    return decimals(directions[:, :2].T), decimals([spacing[1], spacing[0]]), spacing[2]


def write_slices(folder, data, affine, *, kind="1.2.840.10008.5.1.4.1.1.4", **tags):
    """Writes a series, one file per slice, under names and numbers that are in no order."""
    folder.mkdir(parents=True, exist_ok=True)
    orientation, pixel, between = planes(affine)
    uid = generate_uid()
    names = np.random.default_rng(0).permutation(data.shape[2])
    for k, name in enumerate(names):
        file = header(kind, SeriesInstanceUID=uid, InstanceNumber=int(name), **tags)
        file.ImageOrientationPatient, file.PixelSpacing = orientation, pixel
        file.SliceThickness = decimals([between])[0]
        file.ImagePositionPatient = decimals(affine[:3, :3] @ [0, 0, k] + affine[:3, 3])
        pixels(file, np.ascontiguousarray(data[:, :, k].T))
        file.save_as(folder / f"1-{name:02d}.dcm", enforce_file_format=True)
    return uid


def item(**tags):
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def frames(file, affine, order, **own):
    """The functional groups of a file with the slices `order` as frames."""
    orientation, pixel, between = planes(affine)
    measures = item(PixelSpacing=pixel, SliceThickness=decimals([between])[0])
    shared = item(
        PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=orientation)]),
        PixelMeasuresSequence=Sequence([measures]),
    )
    file.SharedFunctionalGroupsSequence = Sequence([shared])
    file.NumberOfFrames = len(order)
    file.PerFrameFunctionalGroupsSequence = Sequence(
        item(
            PlanePositionSequence=Sequence(
                [item(ImagePositionPatient=decimals(affine[:3, :3] @ [0, 0, k] + affine[:3, 3]))]
            ),
            **{name: Sequence([make(i)]) for name, make in own.items()},
        )
        for i, k in enumerate(order)
    )


def write_frames(path, data, affine, **tags):
    """Writes one file of many frames, the last slice first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = header("1.2.840.10008.5.1.4.1.1.6.2", SeriesInstanceUID=generate_uid(), **tags)
    order = list(range(data.shape[2]))[::-1]
    frames(file, affine, order)
    pixels(file, np.ascontiguousarray(data[:, :, order].transpose(2, 1, 0)))
    file.save_as(path, enforce_file_format=True)


def write_segmentation(path, labels, affine, **tags):
    """Writes one bit per voxel and segment: no empty frames, in no order, rows and columns cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    uid = generate_uid()
    file = header("1.2.840.10008.5.1.4.1.1.66.4", SeriesInstanceUID=uid, Modality="SEG", **tags)
    chosen = [
        (k, v) for v in (1, 2) for k in range(labels.shape[2]) if (labels[..., k] == v).any()
    ]
    chosen = [chosen[i] for i in np.random.default_rng(1).permutation(len(chosen))]
    frames(
        file,
        affine,
        [k for k, _ in chosen],
        SegmentIdentificationSequence=lambda i: item(ReferencedSegmentNumber=chosen[i][1]),
    )
    masks = np.stack([(labels[..., k] == v).T for k, v in chosen]).astype(np.uint8)
    file.SegmentationType = "BINARY"
    file.Rows, file.Columns = masks.shape[1:]
    file.BitsAllocated = file.BitsStored = 1
    file.HighBit = file.PixelRepresentation = 0
    file.SegmentSequence = Sequence(item(SegmentNumber=v, SegmentLabel="tumor") for v in (1, 2))
    file.add_new("PixelData", "OB", pack_bits(masks.ravel()))
    file.save_as(path, enforce_file_format=True)
    assert pydicom.dcmread(path).pixel_array.shape == masks.shape


def write_tcia(root, transforms=None):
    """Two patients in folders named as the archive names them; the first one is complete."""
    base = root / "manifest-1" / "ReMIND"
    for patient, number in (("ReMIND-001", 1), ("ReMIND-002", 2)):
        preop, intraop = generate_uid(), generate_uid()
        folder = base / patient / "12-01-1982-NA-Preop-12345"
        tags = {"PatientID": patient, "StudyInstanceUID": preop, "StudyDescription": "Preop"}
        image, affine = mr((34, 30, 40), (1.1, 1.3, 0.9), (-12, 4, 7), REFERENCE_BLOB)
        write_slices(
            folder / "2.000000-3DSAGT2SPACE-1", image, affine,
            Modality="MR", SeriesDescription="3D_SAG_T2_SPACE", SeriesNumber=2, **tags,
        )  # fmt: skip
        other, place = mr((28, 36, 30), (1.2, 0.8, 1.4), (5, -9, 14), OTHER_BLOB)
        if number == 1:
            write_slices(
                folder / "3.000000-3DAXT1postcontrast-2", other, place,
                Modality="MR", SeriesDescription="3D_AX_T1_postcontrast", SeriesNumber=3, **tags,
            )  # fmt: skip
            fine = placed(
                (22, 24, 31), (0.8, 0.8, 0.8), (5, -9, 14), np.add(OTHER_BLOB, [0.3, 0.2, 0])
            )
            write_segmentation(
                folder / "303.000000-tumor seg - MR ref 3DAXT1postcontrast-3" / "1-1.dcm",
                ball((22, 24, 31), fine, OTHER_BLOB), fine, SeriesNumber=303,
                SeriesDescription="tumor seg - MR ref: 3D_AX_T1_postcontrast", **tags,
            )  # fmt: skip
        tags = {"PatientID": patient, "StudyInstanceUID": intraop, "StudyDescription": "Intraop"}
        folder = base / patient / "12-01-1982-NA-Intraop-54321"
        if number == 1:  # finer, of the same name, but of another study and another place
            far = place @ matrix(np.diag([0.5, 0.5, 0.5]), [300, 0, 0])
            write_slices(
                folder / "1.000000-3DAXT1postcontrast-4", other[:9, :9, :9], far,
                Modality="MR", SeriesDescription="3D_AX_T1_postcontrast", SeriesNumber=1, **tags,
            )  # fmt: skip
        tags |= {"Modality": "US", "SeriesDescription": "US_pre_dura", "SeriesNumber": 4}
        us = folder / "4.000000-USpredura-9"
        data = ultrasound(US_SHAPE, US_AFFINE)
        if number == 1:
            write_frames(us / "1-1.dcm", data, US_AFFINE, **tags)
        else:
            write_slices(us, data, US_AFFINE, kind="1.2.840.10008.5.1.4.1.1.6.1", **tags)
        if transforms is None:
            continue
        case, ref = f"Case{number:03d}", "3D_SAG_T2_SPACE"
        us_name, stem = f"{case}-intraop-US-pre_dura", f"{case}-preop-MR-{ref}"
        write_tfm(transforms / "affine" / case / f"{case}-{us_name}-to-{stem}.tfm", AFFINE)
        name = f"{case}-preop-MR-3D_AX_T1_postcontrast"
        write_tfm(transforms / "rigid" / case / f"{case}-{stem}-to-{name}.tfm", RIGID)


def write_resect(root, labels):
    """Two cases, the second one with the other spelling of Landmarks and without FLAIR."""
    for case, marks in (("Case1", "Landmarks"), ("Case12", "Landmark")):
        folder = root / "NIFTI" / case
        write_nifti(
            folder / "US" / f"{case}-US-before.nii.gz", ultrasound(US_SHAPE, US_AFFINE), US_AFFINE
        )
        write_nifti(folder / "US" / f"{case}-US-after.nii.gz", np.ones((4, 4, 4), "u1"), US_AFFINE)
        image, affine = mr((34, 30, 40), (1.0, 1.0, 1.0), (-12, 4, 7), BLOB)
        for name in ("T1", "FLAIR") if case == "Case1" else ("T1",):
            write_nifti(folder / "MRI" / f"{case}-{name}.nii.gz", image, affine)
        (folder / marks).mkdir()
        write_tag(folder / marks / f"{case}-MRI-beforeUS.tag")
    write_nifti(
        Path(labels) / "RESECT_segmentation" / "Case1" / "Case1-US-before-tumor.nii.gz",
        (ball(US_SHAPE, US_AFFINE, BLOB) > 0).astype(np.uint8),
        US_AFFINE,
    )


TAGS = np.array([[[-1.5, 2.25, 3], [-1, 2, 4.5]], [[10, -20, 30], [11, -21, 31.5]]])


def write_tag(path):
    lines = "\n".join(f' {" ".join(map(str, pair.ravel()))} "{k}"' for k, pair in enumerate(TAGS))
    path.write_text(f"MNI Tag Point File\nVolumes = 2;\n% a remark\n\nPoints =\n{lines};\n")
