"""Files that are damaged or hostile, made of whole ones."""

import gzip
import os
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


def nifti(data, **header):
    """The bytes of a NIfTI file, with entries of its header set whatever they are worth."""
    content = nib.Nifti1Image(data, AFFINE).to_bytes()
    changed = nib.Nifti1Header(content[:348], check=False)
    for name, value in header.items():
        changed[name] = value
    return changed.binaryblock + content[348:]


def metaimage(data, tail=None, **header):
    """The bytes of a MetaImage file; `tail` is what follows the header."""
    said = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": True,
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1.5 1.5 2",
        "DimSize": " ".join(map(str, data.shape)),
        "ElementType": "MET_UCHAR",
        **header,
        "ElementDataFile": header.get("ElementDataFile", "LOCAL"),
    }
    stored = zlib.compress(data.astype(np.uint8).tobytes("F")) if tail is None else tail
    if said["CompressedData"]:
        said = {"CompressedDataSize": len(stored), **said}
    text = "".join(f"{name} = {value}\n" for name, value in said.items())
    return text.encode() + stored


def nrrd(data, tail=None, **header):
    """The bytes of a NRRD file; `tail` is what follows the header."""
    said = {
        "type": "uint8",
        "dimension": 3,
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, data.shape)),
        "space directions": "(1.5,0,0) (0,1.5,0) (0,0,2)",
        "kinds": "domain domain domain",
        "encoding": "gzip",
        "space origin": "(0,0,0)",
        **{name.replace("_", " "): value for name, value in header.items()},
    }
    text = "".join(f"{name}: {value}\n" for name, value in said.items())
    stored = gzip.compress(data.astype(np.uint8).tobytes("F")) if tail is None else tail
    return b"NRRD0004\n" + text.encode() + b"\n" + stored


def dicom(folder, data, syntax=pydicom.uid.ExplicitVRLittleEndian):
    """A folder with a DICOM file for each slice of a volume."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(data.shape[2]):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = syntax
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"
        file = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID = meta.MediaStorageSOPClassUID
        file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        file.Modality, file.SeriesInstanceUID = "MR", "1.2.3"
        file.ImageOrientationPatient, file.PixelSpacing = [1, 0, 0, 0, 1, 0], [1.5, 1.5]
        file.ImagePositionPatient, file.SliceThickness = [0, 0, 2 * k], 2
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.Rows, file.Columns = data.shape[1], data.shape[0]
        file.BitsAllocated = file.BitsStored = 16
        file.HighBit, file.PixelRepresentation = 15, 0
        file.PixelData = data[..., k].T.astype("<u2").tobytes()
        file.save_as(folder / f"{k}.dcm", enforce_file_format=True)
    return folder


def _cut_pixels(folder, data):
    """The last slice says as many rows as the others, and has pixels for half of them."""
    path = dicom(folder, data) / "2.dcm"
    file = pydicom.dcmread(path)
    file.PixelData = file.PixelData[: len(file.PixelData) // 2]
    file.save_as(path)


def _junk_dicom(folder, data):
    path = dicom(folder, data) / "2.dcm"
    path.write_bytes(path.read_bytes()[:132] + b"\xff" * 40)


def _deflated(folder, data):
    path = dicom(folder, data, pydicom.uid.DeflatedExplicitVRLittleEndian) / "2.dcm"
    path.write_bytes(path.read_bytes()[:-20])


def _deflated_bomb(folder, data):
    path = dicom(folder, data, pydicom.uid.DeflatedExplicitVRLittleEndian) / "2.dcm"
    length = pydicom.filereader.read_file_meta_info(path).FileMetaInformationGroupLength
    stream = zlib.compressobj(9, wbits=-15)
    path.write_bytes(path.read_bytes()[: 144 + length] + stream.compress(bytes(2**23)))


def damaged_images(root, data):
    """Writes a damaged or hostile image of each kind, and returns their places by name.

    Arguments:
        root: The folder to write to.
        data: The volume that they would show.
    """
    found = {}

    def put(name, suffix, content):
        found[name] = root / f"{name}{suffix}"
        found[name].write_bytes(content)

    whole = nifti(data)
    put("claim", ".nii", nifti(data, dim=[7, *[32767] * 7]))
    put("claim-gz", ".nii.gz", gzip.compress(nifti(data, dim=[3, 1000, 1000, 500, 1, 1, 1, 1])))
    put("negative", ".nii", nifti(data, dim=[3, -16, 16, 3, 1, 1, 1, 1]))
    for name, offset in (("inf", np.inf), ("nan", np.nan), ("zero", 0), ("far", 1e9)):
        put(f"offset-{name}", ".nii", nifti(data, vox_offset=offset))
    put("bomb", ".nii.gz", gzip.compress(whole + bytes(2**23)))
    put("meta-claim", ".mha", metaimage(data, DimSize="30000 30000 30000"))
    put("meta-bomb", ".mha", metaimage(data, zlib.compress(bytes(2**23))))
    put("meta-cut", ".mha", metaimage(data)[:-20])
    put("nrrd-claim", ".nrrd", nrrd(data, sizes="30000 30000 30000"))
    put("nrrd-bomb", ".nrrd", nrrd(data, gzip.compress(bytes(2**23))))
    put("nrrd-junk", ".nrrd", b"NRRD0004\n" + os.urandom(500).replace(b"\n", b""))
    for name, make in (
        ("short", _cut_pixels),
        ("junk", _junk_dicom),
        ("deflated", _deflated),
        ("deflated-bomb", _deflated_bomb),
    ):
        found[f"dicom-{name}"] = root / f"dicom-{name}"
        make(found[f"dicom-{name}"], data)
    found["long"] = root / ("x" * 300 + ".nii")
    found["loop"] = root / "loop.nii"
    found["loop"].symlink_to("loop.nii")
    return found


def detached_images(root, outside, data):
    """Writes detached headers whose voxels are where they should not be, and a pipe.

    Arguments:
        root: The folder to write to.
        outside: A file elsewhere that has as many bytes as the volume has voxels.
        data: The volume.
    """
    found = {}
    (root / "link.raw").symlink_to(outside)
    up = os.path.relpath(outside, root)
    os.mkfifo(root / "pipe.nii")
    os.mkfifo(root / "pipe.raw")
    found["pipe"] = root / "pipe.nii"
    for name, target in (
        ("absolute", str(outside)),
        ("above", up),
        ("link", "link.raw"),
        ("pipe", "pipe.raw"),
    ):
        for suffix, content in (
            (".mhd", metaimage(data, b"", CompressedData=False, ElementDataFile=target)),
            (".mha", metaimage(data, b"", CompressedData=False, ElementDataFile=target)),
            (".nhdr", nrrd(data, b"", encoding="raw", data_file=target)),
            (".nrrd", nrrd(data, b"", encoding="raw", data_file=target)),
        ):
            found[name + suffix.replace(".", "-")] = root / f"{name}{suffix}"
            (root / f"{name}{suffix}").write_bytes(content)
    return found


def write_itk(path: Path, data, compress=True):
    """Writes a volume by SimpleITK."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    sitk.WriteImage(image, str(path), compress)
    return path
