"""Images and indices with faults: messages, exit codes, and what continues."""

import csv
import gzip
import io
import tarfile
import zipfile

import nibabel as nib
import numpy as np
import pytest

sitk = pytest.importorskip("SimpleITK", reason="the example needs SimpleITK")
pydicom = pytest.importorskip("pydicom", reason="the example needs pydicom")

from examples.medical_mri_us.data import (  # noqa: E402
    Image,
    ImageError,
    axis_codes,
    check_training,
    load_subjects,
    read_image,
    read_index,
    reorient,
    write_image,
)
from examples.medical_mri_us.modalities import MODALITIES  # noqa: E402
from examples.medical_mri_us.subcommands.check import Check  # noqa: E402
from examples.medical_mri_us.subcommands.check import run as check  # noqa: E402
from examples.medical_mri_us.subcommands.prepare import Prepare  # noqa: E402
from examples.medical_mri_us.subcommands.prepare import run as prepare  # noqa: E402

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
SHAPE = (16, 16, 3)


def volume(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(10, 250, shape).astype(np.uint8)


def write(path, data, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, affine).to_filename(path)


@pytest.fixture
def index(tmp_path):
    """Three whole cases: the last one is held out."""
    lines = []
    for seed, (case, split) in enumerate((("a", "train"), ("b", "train"), ("c", "test"))):
        for k, m in enumerate(MODALITIES):
            write(tmp_path / case / f"{m}.nii.gz", volume(10 * seed + k))
        lines.append([case, split, *(f"{case}/{m}.nii.gz" for m in MODALITIES)])
    with (tmp_path / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["case", "split", *MODALITIES], *lines])
    return tmp_path / "index.csv"


@pytest.fixture
def broken(index):
    """The file of a case that is about to break."""
    return index.parent / "b" / "t2.nii.gz"


def says(index, capsys, *words):
    """Whether `check` ends with 3 and says it, and whether the other cases can be loaded."""
    assert check(Check(index)) == 3
    (problem,) = [line for line in capsys.readouterr().err.splitlines() if "case b" in line]
    for word in ("b/t2.nii.gz", *words):
        assert word in problem
    subjects, problems = load_subjects(read_index(index), progress=False)
    assert [s.name for s in subjects] == ["a", "c"]
    assert len(problems) == 1
    return problem


def test_whole_data_pass(index, capsys):
    assert check(Check(index)) == 0
    assert "No problem found" in capsys.readouterr().out


@pytest.mark.fault(1)
def test_a_missing_file(index, broken, capsys):
    broken.unlink()
    says(index, capsys, "no such file")


@pytest.mark.fault(2)
def test_an_empty_file(index, broken, capsys):
    broken.write_bytes(b"")
    says(index, capsys, "cannot be read", "copy or export it again")


@pytest.mark.fault(3)
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
def test_a_truncated_archive(index, broken, capsys, kept):
    content = broken.read_bytes()
    broken.write_bytes(content[: int(kept * len(content))])
    says(index, capsys, "cannot be read")


@pytest.mark.fault(3)
def test_a_truncated_file(index, broken, capsys):
    content = gzip.decompress(broken.read_bytes())
    broken.write_bytes(gzip.compress(content[:-1]))  # the archive is whole, the image is not
    says(index, capsys, "cannot be read")


@pytest.mark.fault(3)
@pytest.mark.parametrize("kept", [0.2, 0.9, 1.0])
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_a_truncated_file_of_any_format(suffix, compress, kept, tmp_path):
    """Never zeros in place of the voxels that are gone."""
    path = tmp_path / f"a{suffix}"
    image = sitk.GetImageFromArray(volume(3, (16, 16, 8)))
    sitk.WriteImage(image, str(path), useCompression=compress)
    assert read_image(path).data.shape == (8, 16, 16)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * (len(content) - 1))])  # or without its last byte
    with pytest.raises(ImageError, match=f"a{suffix} cannot be read"):
        read_image(path)


@pytest.mark.fault(4)
def test_one_flipped_bit(index, broken):
    """No bit of the compressed voxels, or of the checksum behind, changes unseen."""
    content = broken.read_bytes()
    whole, named = read_image(broken), []
    for place in np.random.default_rng(0).integers(10, len(content), 60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        broken.write_bytes(bytes(damaged))
        try:
            found = read_image(broken)
        except ImageError as error:
            named.append("t2.nii.gz" in str(error))
        else:  # a bit that gzip does not use, such as one of the file's name
            np.testing.assert_array_equal(found.data, whole.data)
            np.testing.assert_array_equal(found.affine, whole.affine)
    assert len(named) > 50
    assert all(named)


@pytest.mark.fault(5)
def test_a_text_file(index, broken, capsys):
    broken.write_text("not an image, but a page that says 404")
    says(index, capsys, "cannot be read")


@pytest.mark.fault(6)
def test_four_dimensions(index, broken, capsys):
    write(broken, volume(shape=(*SHAPE, 2)))
    says(index, capsys, "(16, 16, 3, 2)", "save one volume per file")
    write(broken, volume(shape=(*SHAPE, 1)))
    assert read_image(broken).data.shape == SHAPE


@pytest.mark.fault(7)
def test_not_finite(index, broken, capsys):
    data = volume().astype(np.float32)
    data[0, :2, 0] = np.nan, np.inf
    write(broken, data)
    says(index, capsys, "NaN or infinity in 2 of 768 voxels", "--nonfinite zero")
    assert read_image(broken, zero_nonfinite=True).data[0, :3, 0].tolist() == [0, 0, data[0, 2, 0]]
    out = index.parent / "out"
    assert prepare(Prepare(out=out / "1", index=index, size=16, spacing=1.5)) == 1
    options = Prepare(out=out / "2", index=index, size=16, spacing=1.5, nonfinite="zero")
    assert prepare(options) == 0


@pytest.mark.fault(8)
def test_a_constant_volume(index, broken, capsys):
    for level in (0, 7):
        write(broken, np.full(SHAPE, level, np.int16))
        says(index, capsys, "constant", "leave its cell empty if missing")


@pytest.mark.fault(9)
@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "float32"])
def test_scaled_and_signed_integers(tmp_path, kind):
    stored = np.arange(-30 if kind in ("int16", "float32") else 0, 226)[:64].reshape(4, 4, 4)
    image = nib.Nifti1Image(stored.astype(kind), np.eye(4))
    image.header.set_slope_inter(0.25, -3)
    image.to_filename(tmp_path / "a.nii.gz")
    content = bytearray(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    header = nib.Nifti1Header(bytes(content[:348]))
    header["scl_slope"], header["scl_inter"] = 0.25, -3
    raw = header.binaryblock + b"\0\0\0\0" + stored.astype(kind).tobytes("F")
    (tmp_path / "a.nii").write_bytes(raw)
    read = read_image(tmp_path / "a.nii").data
    np.testing.assert_array_equal(read, stored * 0.25 - 3)
    write_image(tmp_path / "b.nii.gz", stored, np.eye(4), dtype=kind)
    np.testing.assert_array_equal(read_image(tmp_path / "b.nii.gz").data, stored)


@pytest.mark.fault(10)
def test_integers_that_do_not_fit(tmp_path):
    write_image(tmp_path / "a.nii.gz", np.full(SHAPE, 255, np.int64), AFFINE, dtype="uint8")
    assert read_image(tmp_path / "a.nii.gz").data.max() == 255
    with pytest.raises(ValueError, match=r"'data' should lie in 0 to 255 for uint8, .* 256"):
        write_image(tmp_path / "b.nii", np.full(SHAPE, 256), AFFINE, dtype="uint8")
    with pytest.raises(ValueError, match=r"'data' should be finite"):
        write_image(tmp_path / "b.nii", np.full(SHAPE, np.nan), AFFINE)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def with_sform(path, sform):
    """Writes an image whose sform is as given, whatever nibabel thinks of it."""
    image = nib.Nifti1Image(volume(), AFFINE)
    content = bytearray(image.to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]))
    header["srow_x"], header["srow_y"], header["srow_z"] = np.asarray(sform, np.float32)[:3]
    path.write_bytes(gzip.compress(header.binaryblock + bytes(content[348:])))


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("sform", "words"),
    [
        (np.zeros((4, 4)), "singular"),
        (np.diag([1.0, 0, 1, 1]), "singular"),
        ([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], "singular"),
        (np.full((4, 4), np.nan), "NaN or infinity"),
        (np.diag([np.inf, 1, 1, 1]), "NaN or infinity"),
    ],
)
def test_an_affine_that_is_none(index, broken, capsys, sform, words):
    with_sform(broken, sform)
    says(index, capsys, words)
    with pytest.raises(ValueError, match="'affine' cannot be written"):
        write_image(broken, volume(), np.vstack([np.asarray(sform, float)[:3], [0, 0, 0, 1]]))


@pytest.mark.fault(12)
def test_a_sheared_affine(index, broken, capsys):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.4
    write(broken, volume(), sheared)
    says(index, capsys, "sheared", "resample it first")
    out = index.parent / "out"
    assert prepare(Prepare(out=out, index=index, size=16, spacing=1.5)) == 0
    assert check(Check(out / "index.csv")) == 0


@pytest.mark.fault(13)
def test_two_affines(index, broken, capsys):
    image = nib.Nifti1Image(volume(), AFFINE)
    image.set_qform(np.diag([1.5, 1.5, 2.5, 1]), code=1)
    image.to_filename(broken)
    says(index, capsys, "sform and qform are 1 mm apart", "--prefer sform or --prefer qform")
    assert read_image(broken, prefer="sform").affine[2, 2] == 2
    assert read_image(broken, prefer="qform").affine[2, 2] == 2.5
    out = index.parent / "out"
    options = Prepare(out=out, index=index, size=16, spacing=1.5, prefer="sform")
    assert prepare(options) == 0
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    image.to_filename(broken)
    says(index, capsys, "does not say how it lies in space")


ORIENTATIONS = ["RAS", "LPS", "PIR", "SAL", "IPR", "oblique"]


@pytest.mark.fault(14)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientations_are_kept(tmp_path, orientation):
    """Turned to RAS, back, written and read: the same voxels in the same places."""
    affine = np.diag([0.5, 0.8, 2.0, 1.0])
    affine[:3, 3] = 41.3, -87.9, 12.7
    raw = Image(volume().astype(np.float32), affine)
    if orientation == "oblique":
        c, s = np.cos(0.6), np.sin(0.6)
        affine[:3, :3] = [[c, -s, 0], [s * c, c * c, -s], [s * s, s * c, c]] @ affine[:3, :3]
    else:
        raw = reorient(raw, orientation)
        assert axis_codes(raw.affine) == orientation
    canonical = reorient(raw, "RAS")
    assert axis_codes(canonical.affine) == "RAS"
    back = reorient(canonical, axis_codes(raw.affine))
    write_image(tmp_path / "a.nii.gz", back.data, back.affine)
    found = read_image(tmp_path / "a.nii.gz")
    assert np.abs(found.affine - raw.affine).max() < 1e-5
    np.testing.assert_array_equal(found.data, raw.data)


@pytest.mark.fault(15)
def test_grids_that_differ(index, broken, capsys):
    write(broken, volume(), np.diag([1.5, 1.5, 2.5, 1.0]))
    words = ["16 x 16 x 3 of 1.5 x 1.5 x 2 mm", "16 x 16 x 3 of 1.5 x 1.5 x 2.5 mm"]
    says(index, capsys, *words, "--resample-to")
    write(broken, volume(shape=(16, 16, 4)))
    says(index, capsys, "16 x 16 x 4 of 1.5 x 1.5 x 2 mm")
    out = index.parent / "out"
    options = Prepare(out=out, index=index, size=16, spacing=1.5, resample_to="us")
    assert prepare(options) == 0
    assert check(Check(out / "index.csv")) == 0


@pytest.mark.fault(15)
def test_rounding_is_no_difference(index, broken):
    near = AFFINE.copy()
    near[0, 3] += 5e-4
    write(broken, volume(), near)
    assert check(Check(index)) == 0
    near[0, 3] += 1e-2
    write(broken, volume(), near)
    assert check(Check(index)) == 3


@pytest.mark.fault(16)
@pytest.mark.parametrize("scale", [1e-3, 20])
def test_unlikely_spacing(index, broken, capsys, scale):
    write(broken, volume(), np.diag([*(scale * np.diag(AFFINE)[:3]), 1]))
    says(index, capsys, "beyond 0.1 to 10 mm", "check the unit of its header")


@pytest.mark.fault(16)
def test_units_are_honoured(tmp_path):
    for unit, scale in (("meter", 1e-3), ("micron", 1e3), ("mm", 1), ("unknown", 1)):
        image = nib.Nifti1Image(volume(), np.diag([*(scale * np.diag(AFFINE)[:3]), 1]))
        image.header.set_xyzt_units(unit)
        image.to_filename(tmp_path / "a.nii.gz")
        np.testing.assert_allclose(read_image(tmp_path / "a.nii.gz").affine, AFFINE, rtol=1e-6)


@pytest.mark.fault(17)
@pytest.mark.parametrize("shape", [(13, 17, 3), (16, 16, 1), (50, 45, 5), (1, 16, 3)])
def test_any_size_is_cropped_or_padded_in_place(tmp_path, shape):
    """Every voxel that is kept stays where it was, also when the size is odd."""
    data = volume(shape=shape)
    affine = np.diag([1.5, 1.5, 4, 1])  # slices far apart stay so
    write(tmp_path / "a" / "us.nii.gz", data, affine)
    (tmp_path / "index.csv").write_text("case,split,us\na,train,a/us.nii.gz\n")
    out = tmp_path / "out"
    assert prepare(Prepare(out=out, index=tmp_path / "index.csv", size=16, spacing=1.5)) == 0
    found = read_image(out / "a" / "us.nii.gz")
    assert found.data.shape == (16, 16, shape[2])
    shift = np.rint((np.linalg.inv(affine) @ found.affine)[:3, 3]).astype(int)
    np.testing.assert_allclose(np.linalg.inv(affine) @ found.affine, shifted(shift), atol=1e-5)
    padded = np.pad(data, [(16, 16), (16, 16), (0, 0)])
    i, j, _ = shift + 16
    np.testing.assert_allclose(found.data, padded[i : i + 16, j : j + 16], atol=1e-3)


def shifted(voxels):
    affine = np.eye(4)
    affine[:3, 3] = voxels
    return affine


def dicom(path, series, place, **tags):
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    file = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID = meta.MediaStorageSOPClassUID
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    file.Modality, file.SeriesInstanceUID, file.SeriesDescription = "MR", f"1.2.{series}", "axial"
    file.ImageOrientationPatient, file.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
    file.ImagePositionPatient, file.SliceThickness = [0, 0, place], 2
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.Rows = file.Columns = 8
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, 0
    file.PixelData = np.full((8, 8), place, np.uint16).tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)


@pytest.mark.fault(18)
def test_a_folder_of_dicom(tmp_path):
    for k, place in enumerate((4, 0, 6, 2)):  # names are in another order than places
        dicom(tmp_path / "one" / f"{k}.dcm", 1, place)
    (tmp_path / "one" / "notes.txt").write_text("no DICOM, and passed over")
    image = read_image(tmp_path / "one")
    assert image.data[0, 0].tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(image.affine, np.diag([-1, -1, 2, 1]))
    with pytest.raises(ImageError, match="no series of DICOM images"):
        read_image(empty(tmp_path))


def empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.fault(18)
def test_several_series_in_a_folder(tmp_path):
    for series in (1, 2):
        for place in (0, 2):
            dicom(tmp_path / f"{series}-{place}.dcm", series, place)
    with pytest.raises(ImageError, match=r"holds 2: MR 'axial', 2 files, 1\.2\.1; MR 'axial'"):
        read_image(tmp_path)


@pytest.mark.fault(18)
def test_slices_that_are_missing(tmp_path):
    for place in (0, 2, 6):
        dicom(tmp_path / f"{place}.dcm", 1, place)
    with pytest.raises(ImageError, match="slices are 2 to 4 mm apart; some are missing"):
        read_image(tmp_path)
    dicom(tmp_path / "4.dcm", 1, 4)
    assert read_image(tmp_path).data.shape == (8, 8, 4)
    dicom(tmp_path / "again.dcm", 1, 4)
    with pytest.raises(ImageError, match=r"its slices stand twice, as 4\.dcm and again\.dcm do"):
        read_image(tmp_path)


@pytest.mark.fault(18)
@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ImagePositionPatient": [0, 3, 2]}, "not stacked at right angles"),
        ({"PixelSpacing": [1, 2]}, "slices of differing planes"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "slices of differing planes"),
        ({"Rows": 4}, "slices of differing planes, 4 x 8 pixels of 1 x 1 mm and 8 x 8"),
    ],
)
def test_slices_that_are_no_stack(tmp_path, tags, message):
    for place in (0, 2, 4):
        dicom(tmp_path / f"{place}.dcm", 1, place, **(tags if place == 2 else {}))
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path)


@pytest.mark.fault(18)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_damaged_slices(tmp_path):
    """Cut or changed anywhere, the last slice too: an image as it was, or an ImageError."""
    rng = np.random.default_rng(0)
    for place in (0, 2, 4):
        dicom(tmp_path / f"{place}.dcm", 1, place)
    last = tmp_path / "4.dcm"
    content = last.read_bytes()
    for cut in np.linspace(140, len(content) - 1, 12).astype(int):
        last.write_bytes(content[:cut])
        with pytest.raises(ImageError, match=str(tmp_path)):
            read_image(tmp_path)
    refused = 0
    for _ in range(100):
        damaged = bytearray(content)
        damaged[rng.integers(132, len(content) - 128)] = rng.integers(256)
        last.write_bytes(bytes(damaged))
        try:
            assert read_image(tmp_path).data.shape == (8, 8, 3)
        except ImageError:
            refused += 1
    assert refused > 20


def refused(index, text, *words):
    """The problem of an index with this text; the words must be in it."""
    index.write_text(text)
    with pytest.raises(ValueError, match=r"index\.csv, line \d+: ") as raised:
        read_index(index)
    for word in words:
        assert word in str(raised.value)
    return str(raised.value)


HEADER = "case,split,us,t2,cet1,flair\n"


@pytest.mark.fault(19)
def test_duplicate_ids(index):
    text = HEADER + "a,train,a/us.nii.gz,,,\nb,train,b/us.nii.gz,,,\na,train,c/us.nii.gz,,,\n"
    refused(index, text, "line 4: case a stands twice, first in line 2")
    refused(index, text.replace("us,t2", "us,us"), "us stands twice")


@pytest.mark.fault(20)
def test_ids_that_begin_alike(index):
    text = "".join(
        f"Case{k},train,{c}/us.nii.gz,,,\n" for k, c in ((1, "a"), (10, "b"), (11, "c"))
    )
    index.write_text(HEADER + text)
    cases = {case.name: case.images["us"].parent.name for case in read_index(index)}
    assert cases == {"Case1": "a", "Case10": "b", "Case11": "c"}
    (index.parent / "split.csv").write_text("case,split\nCase1-,training\nCase11-,inference\n")
    out = index.parent / "out"
    split = index.parent / "split.csv"
    assert prepare(Prepare(out=out, index=index, size=16, spacing=1.5, split=split)) == 0
    found = {case.name: case.split for case in read_index(out / "index.csv")}
    assert found == {"Case1": "train", "Case11": "test"}


@pytest.mark.fault(21)
def test_an_unknown_modality(index):
    text = HEADER.replace("flair", "Flare") + "a,train,a/us.nii.gz,,,\n"
    refused(index, text, "line 1", "Instead of 'Flare', did you mean 'flair'")
    refused(index, HEADER.replace(",", ";"), "separated by commas")
    own = HEADER.replace("flair", "pet") + "a,train,,,,a/us.nii.gz\n"
    index.write_text(own)
    assert list(read_index(index, ("us", "t2", "cet1", "pet"))[0].images) == ["pet"]


@pytest.mark.fault(22)
def test_a_case_with_nothing(index):
    refused(index, HEADER + "a,train,,,,\n", "line 2: case a should have at least one modality")
    index.write_text(HEADER)
    with pytest.raises(ValueError, match="there is no case in it"):
        read_index(index)
    with pytest.raises(ValueError, match="at least one training case"):
        check_training([])


@pytest.mark.fault(23)
def test_a_modality_that_no_training_case_has(index, capsys):
    text = index.read_text().replace("a/t2.nii.gz", "").replace("b/t2.nii.gz", "")
    index.write_text(text)
    cases = read_index(index)
    with pytest.raises(ValueError, match="none of 2 training cases has t2"):
        check_training([case for case in cases if case.split == "train"])
    check_training(cases)
    assert check(Check(index)) == 3
    assert "none of 2 training cases has t2" in capsys.readouterr().err


@pytest.mark.fault(24)
def test_one_patient_in_two_splits(index, capsys):
    rows = ("a,train,p,a/us.nii.gz", "b,train,q,b/us.nii.gz", "c,test,p,c/us.nii.gz")
    text = "\n".join(["case,split,patient,us", *rows])
    refused(index, text, "line 4: patient p is in the split test, and in train in line 2")
    text = "case,split,us\na,train,a/us.nii.gz\nc,test,a/us.nii.gz\n"
    refused(index, text, "line 3: us.nii.gz of case c (test) is also of case a (train)")
    text = "case,split,us\na,train,a/us.nii.gz\nc,test,c/us.nii.gz\n"
    index.write_text(text)
    data = nib.load(index.parent / "a" / "us.nii.gz").get_fdata().astype(np.int16)
    write(index.parent / "c" / "us.nii.gz", data)  # other bytes, the same image
    assert check(Check(index, modalities=("us",))) == 3
    assert "us of cases a (train) and c (test) is one image" in capsys.readouterr().err


@pytest.mark.fault(25)
@pytest.mark.parametrize("cell", ["../../etc/passwd", "/etc/passwd", "out/us.nii.gz"])
def test_a_path_that_leaves_the_folder(index, tmp_path_factory, cell):
    outside = tmp_path_factory.mktemp("outside")
    write(outside / "us.nii.gz", volume())
    (index.parent / "out").symlink_to(outside)
    refused(index, HEADER + f"a,train,{cell},,,\n", "line 2", "outside the folder of the index")


@pytest.mark.fault(25)
def test_a_name_that_leaves_the_folder(index):
    for name in ("../a", "a/b", "..", ".hidden", "a\\b"):
        text = HEADER + f"{name},train,a/us.nii.gz,,,\n"
        refused(index, text, f"line 2: the name of a case cannot be {name!r}: it should")


@pytest.mark.fault(26)
def test_archives_are_never_unpacked(index):
    """There is nothing to slip out of: archives are refused, with a word to unpack them."""
    root = index.parent
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        archive.writestr("../../slipped.nii.gz", b"")
    with tarfile.open(root / "a.tar.gz", "w") as archive:
        archive.addfile(tarfile.TarInfo("../slipped.nii.gz"), io.BytesIO())
    before = set(root.parent.rglob("*"))
    for name in ("a.zip", "a.tar.gz"):
        with pytest.raises(ImageError, match="unpack archives"):
            read_image(root / name)
        with pytest.raises(ValueError, match=r"should be a folder \(unpack archives first\)"):
            prepare(Prepare(out=root / "out", tcia=root / name))
    assert set(root.parent.rglob("*")) == before


@pytest.mark.fault(27)
def test_spreadsheets_write_csv_in_many_ways(index):
    plain = read_index(index)
    text = (
        index.read_text()
        .replace("b/t2.nii.gz", "NaN")
        .replace("\n", "\r\n")
        .replace(",a/", ", a/")
    )
    for variant in (text, text + "\r\n\r\n", text + ",,,,,\r\n", text.replace("NaN", " n/a ")):
        index.write_bytes(b"\xef\xbb\xbf" + variant.encode())
        cases = read_index(index)
        assert [case.name for case in cases] == ["a", "b", "c"]
        assert list(cases[1].images) == ["us", "cet1", "flair"]
        assert cases[0].images == plain[0].images


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("NaN,train,a/us.nii.gz,,,", "line 2: a case should have a name"),
        ("a,,a/us.nii.gz,,,", "line 2: a case should have a name and a split"),
        ("a,train,a/us.nii.gz", "line 2: should have 6 cells, as the header has, but has 3"),
        ("a,train,a/us.nii.gz,,,,,", "but has 8"),
        ('a,train,"a/us.nii.gz,,,', "no CSV"),
        ('a,train,"a/us"x,,,', "line 2: no CSV"),
    ],
)
def test_broken_rows_have_a_line(index, row, words):
    refused(index, HEADER + row + "\n", words)


def test_all_problems_of_an_index_are_listed(index):
    lines = "".join(f"case{k},train,,,,\n" for k in range(30))
    problem = refused(index, HEADER + lines, "line 2", "line 13", "\n... and 18 more")
    assert "line 14" not in problem
