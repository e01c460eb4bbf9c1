"""DICOM as scanners and archives leave it: read as it is meant, or refused by name."""

import tempfile
from pathlib import Path

import layouts
import numpy as np
import pydicom
import pydicom.data
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import item
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from volumes import make_run

from examples.medical_mri_us.data import CaseError, ImageError, list_series, read_image
from examples.medical_mri_us.data.datasets import read_frames
from examples.medical_mri_us.data.repeats import TELLING
from examples.medical_mri_us.subcommands.synthesize import Synthesize
from examples.medical_mri_us.subcommands.synthesize import run as synthesize

MR, ENHANCED = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"
PIXEL, BETWEEN = (1.25, 0.75), 3.0
AXIAL, SAGITTAL, CORONAL = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]
SYNTAXES = (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless,
)  # fmt: skip


def numbers(count, dtype=np.uint16, bits=16, seed=0):
    """Stored numbers, (frame, row, column)."""
    low, high = (
        (0, 2**bits) if np.dtype(dtype).kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    )
    return np.random.default_rng(seed).integers(low, high, (count, 20, 18)).astype(dtype)


def picture(stored, *, kind=MR, syntax=ExplicitVRLittleEndian, **tags):
    """A file with some pixels, that says nothing of where they lie."""
    tags = {"SeriesInstanceUID": "1.2.3", "PatientID": "a", "Modality": "MR", **tags}
    file = layouts.header(kind, **tags)
    file.file_meta.TransferSyntaxUID = syntax
    layouts.pixels(file, stored)
    return file


def save(file, path, *, preamble=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    if file.file_meta.TransferSyntaxUID == RLELossless:
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.compress(RLELossless, generate_instance_uid=False)
    file.save_as(path, enforce_file_format=True)
    if not preamble:
        path.write_bytes(path.read_bytes()[132:])


def write_slices(folder, stored, scales=None, places=None, own=(), **options):
    """One file for each slice, whose names are in no order of places."""
    preambles = options.pop("preambles", [True] * len(stored))
    for k, slice_ in enumerate(stored):
        file = picture(slice_, **options)
        file.ImageOrientationPatient, file.PixelSpacing = AXIAL, list(PIXEL)
        file.ImagePositionPatient = [0, 0, BETWEEN * (k if places is None else places[k])]
        file.SliceThickness = BETWEEN
        if scales is not None:
            file.RescaleSlope, file.RescaleIntercept = map(repr, scales[k])
        for name, values in dict(own).items():
            setattr(file, name, values[k])
        save(file, folder / f"{(7 * k) % 11:02}-{k}.dcm", preamble=preambles[k])
    return folder


def write_frames(folder, stored, scales=None, orientations=None, shared=None, **options):
    """One file of many frames, each with functional groups of its own."""
    file = picture(stored, kind=ENHANCED, **options)
    file.NumberOfFrames = len(stored)
    groups = item(PixelMeasuresSequence=[item(PixelSpacing=list(PIXEL), SliceThickness=BETWEEN)])

    def scale(slope, intercept):
        values = item(RescaleSlope=repr(slope), RescaleIntercept=repr(intercept))
        return Sequence([values])

    if shared is not None:
        groups.PixelValueTransformationSequence = scale(*shared)
    file.SharedFunctionalGroupsSequence = Sequence([groups])
    frames = []
    for k in range(len(stored)):
        turn = AXIAL if orientations is None else orientations[k]
        frame = item(
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, BETWEEN * k])],
            PlaneOrientationSequence=[item(ImageOrientationPatient=turn)],
        )
        if scales is not None:
            frame.PixelValueTransformationSequence = scale(*scales[k])
        frames.append(frame)
    file.PerFrameFunctionalGroupsSequence = Sequence(frames)
    save(file, folder / "a.dcm")
    return folder


AFFINE = np.diag([-PIXEL[1], -PIXEL[0], BETWEEN, 1.0])

scales = st.tuples(
    st.floats(1e-3, 1e3).map(lambda x: float(f"{x:.6g}")),
    st.floats(-1e4, 1e4).map(lambda x: float(f"{x:.6g}")),
)


@settings(max_examples=30, deadline=None)
@given(
    scales=st.lists(scales, min_size=2, max_size=5),
    layout=st.sampled_from(["slices", "frames"]),
    syntax=st.sampled_from(SYNTAXES),
    kind=st.sampled_from([(np.uint16, 16), (np.int16, 16), (np.uint16, 12), (np.int16, 12)]),
    seed=st.integers(0, 9),
)
def test_each_slice_has_a_scale_of_its_own(scales, layout, syntax, kind, seed):
    """Slope times stored number plus intercept, in float64, however pixels are encoded."""
    stored = numbers(len(scales), *kind, seed=seed)
    with tempfile.TemporaryDirectory() as root:
        write = write_slices if layout == "slices" else write_frames
        found = read_image(write(Path(root), stored, scales, syntax=syntax))
    slopes, intercepts = np.array(scales).T[..., None, None]
    wanted = stored * slopes + intercepts
    np.testing.assert_array_equal(found.data, wanted.astype(np.float32).T)
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-9)


def test_the_scale_of_all_frames_gives_way_to_that_of_one(tmp_path):
    stored = numbers(3)
    found = read_image(write_frames(tmp_path / "a", stored, shared=(2.0, 5.0)))
    np.testing.assert_array_equal(found.data, (stored * 2.0 + 5).T)
    own = [(1.0, 0.0), (4.0, -1.0), (0.5, 0.0)]
    found = read_image(write_frames(tmp_path / "b", stored, own, shared=(2.0, 5.0)))
    for k, (slope, intercept) in enumerate(own):
        np.testing.assert_array_equal(found.data[..., k], (stored[k] * slope + intercept).T)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16])
def test_numbers_of_one_scale_are_those_of_simpleitk(tmp_path, syntax, kind):
    stored = numbers(3, kind, 8 * np.dtype(kind).itemsize - 1)
    folder = write_slices(tmp_path, stored, [(2.0, -1024.0)] * 3, syntax=syntax)
    found = read_image(folder)
    for file in folder.iterdir():
        k = int(file.stem[-1])
        other = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[0]
        np.testing.assert_array_equal(found.data[..., k], other.T)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16])
def test_small_numbers_are_bright_where_a_file_says_so(tmp_path, syntax, kind):
    """As SimpleITK has it: the range is turned about, whatever the encoding."""
    stored = numbers(2, kind, 8 * np.dtype(kind).itemsize)
    tags = {"PhotometricInterpretation": "MONOCHROME1"}
    folder = write_slices(tmp_path, stored, [(2.0, 3.0)] * 2, syntax=syntax, **tags)
    found = read_image(folder).data
    limits = np.iinfo(kind)
    wanted = 2.0 * (int(limits.min) + int(limits.max) - stored.astype(int)) + 3
    np.testing.assert_array_equal(found, wanted.astype(np.float32).T)
    for file in folder.iterdir():
        other = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[0]
        np.testing.assert_array_equal(found[..., int(file.stem[-1])], other.T)


def test_encodings_of_one_scan_agree():
    """A genuine MR that comes with pydicom, in seven transfer syntaxes."""
    folder = Path(pydicom.data.__file__).parent / "test_files"
    kinds = ("", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless")
    wanted = pydicom.dcmread(folder / "MR_small.dcm").pixel_array
    for kind in kinds:
        found = read_frames(folder / f"MR_small{kind}.dcm")
        np.testing.assert_array_equal(found, wanted[None], err_msg=kind)


def test_bits_that_are_not_stored_are_passed_over(tmp_path):
    """Old overlays lie above the 12 bits of a pixel."""
    stored = numbers(2, bits=12)
    folder = write_slices(
        tmp_path, stored | 0xF000, own={"BitsStored": [12] * 2, "HighBit": [11] * 2}
    )
    np.testing.assert_array_equal(read_image(folder).data, stored.T)


@settings(max_examples=25, deadline=None)
@given(
    preambles=st.lists(st.booleans(), min_size=3, max_size=3),
    syntax=st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless]),
)
def test_slices_without_a_preamble_are_read(preambles, syntax):
    stored = numbers(3)
    with tempfile.TemporaryDirectory() as root:
        folder = write_slices(Path(root), stored, syntax=syntax, preambles=preambles)
        np.testing.assert_array_equal(read_image(folder).data, stored.T)


def test_files_of_old_archives_begin_with_their_first_element(tmp_path):
    """Neither a preamble nor a group of file meta information."""
    stored = numbers(3)
    folder = write_slices(tmp_path, stored, syntax=ImplicitVRLittleEndian)
    for file in folder.iterdir():
        content = file.read_bytes()
        length = pydicom.filereader.read_file_meta_info(file).FileMetaInformationGroupLength
        file.write_bytes(content[144 + length :])
        assert file.read_bytes()[:2] == b"\x08\0"
    np.testing.assert_array_equal(read_image(folder).data, stored.T)


def test_what_else_lies_in_the_folder(tmp_path):
    """A directory of files whatever its name, reports and texts are passed over."""
    stored = numbers(3)
    folder = write_slices(tmp_path, stored)
    for name in ("DIRFILE", "index.dcm", "below/X"):
        file = layouts.header("1.2.840.10008.1.3.10", FileSetID="DISK1")
        save(file, folder / name)
    report = layouts.header(
        "1.2.840.10008.5.1.4.1.1.88.59", SeriesInstanceUID="1.9", Modality="KO"
    )
    save(report, folder / "report.dcm")
    (folder / "notes.txt").write_text("no DICOM")
    (folder / "._00.dcm").write_bytes(b"\0\5\x16\7" + bytes(200))  # as macOS leaves them
    np.testing.assert_array_equal(read_image(folder).data, stored.T)


@pytest.mark.parametrize("content", [b"", b"no DICOM", bytes(500)])
def test_files_that_should_be_dicom_are_named(tmp_path, content):
    """A slice without its beginning is no reason for a volume without that slice."""
    folder = write_slices(tmp_path, numbers(3))
    (folder / "9.IMA").write_bytes(content)
    with pytest.raises(ImageError, match=r"9\.IMA cannot be read as DICOM; export it again"):
        read_image(folder)


@pytest.mark.parametrize("count", [-1, 400_000_000])
def test_headers_get_no_frames_that_are_not_there(tmp_path, count):
    """None is made room for: one pixel each would be few enough."""
    file = picture(np.zeros((1, 1), np.uint16), ImageOrientationPatient=AXIAL)
    file.ImagePositionPatient, file.PixelSpacing = [0, 0, 0], list(PIXEL)
    file.SpacingBetweenSlices, file.NumberOfFrames = "1", count
    save(file, tmp_path / "a.dcm")
    with pytest.raises(
        ImageError, match=rf"a\.dcm cannot be read as DICOM: its header says {count} frames"
    ):
        read_image(tmp_path)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations([AXIAL, SAGITTAL, CORONAL, AXIAL]), frames=st.booleans())
def test_localizers_are_refused(order, frames):
    with tempfile.TemporaryDirectory() as root:
        if frames:
            write_frames(Path(root), numbers(4), orientations=order)
        else:
            write_slices(Path(root), numbers(4), own={"ImageOrientationPatient": order})
        with pytest.raises(
            ImageError, match="as a localizer does; take a series of par"
        ) as raised:
            read_image(root)
        for count in ("2 axial", "1 sagittal", "1 coronal"):
            assert count in str(raised.value)


@pytest.mark.parametrize("how", ["type", "number"])
def test_mosaics_are_refused(tmp_path, how):
    file = picture(numbers(1)[0], ImageOrientationPatient=AXIAL, PixelSpacing=list(PIXEL))
    file.ImagePositionPatient = [0, 0, 0]
    if how == "type":
        file.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    else:
        file.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 16)
    save(file, tmp_path / "a.dcm")
    with pytest.raises(ImageError, match=r"Siemens mosaics.*convert them to NIfTI first"):
        read_image(tmp_path)


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(2, 4),
    places=st.integers(1, 3),
    names=st.lists(
        st.sampled_from([n for n in TELLING if "Frame" not in n]), max_size=2, unique=True
    ),
    shuffle=st.randoms(use_true_random=False),
)
def test_several_images_in_a_series_are_told_apart(images, places, names, shuffle):
    """By the first attribute that differs, or else they are copies."""
    slices = [(place, image) for place in range(places) for image in range(images)]
    shuffle.shuffle(slices)
    values = {
        "ImageType": lambda i: ["ORIGINAL", "PRIMARY", "MPRI"[i]],
        "ComplexImageComponent": lambda i: ["MAGNITUDE", "PHASE", "REAL", "IMAGINARY"][i],
        "AcquisitionTime": lambda i: f"10150{i}",
    }
    own = {n: [values.get(n, lambda i: 10 + i)(image) for _, image in slices] for n in names}
    with tempfile.TemporaryDirectory() as root:
        places_of = [place for place, _ in slices]
        write_slices(Path(root), numbers(len(slices)), places=places_of, own=own)
        with pytest.raises(ImageError) as raised:
            read_image(root)
    said = str(raised.value)
    if not names:
        assert "its slices stand twice" in said
        assert "remove the copies" in said
    else:
        first = min(names, key=TELLING.index)
        assert f"it holds {images} images in one series, told apart by {first} (" in said
        assert "export each as a series of its own" in said


def test_two_attributes_together_tell_images_apart(tmp_path):
    """Two echoes with a magnitude and a phase each."""
    own = {"EchoTime": [20, 20, 90, 90], "ComplexImageComponent": ["MAGNITUDE", "PHASE"] * 2}
    write_slices(tmp_path, numbers(4), places=[0] * 4, own=own)
    with pytest.raises(
        ImageError, match=r"4 images .* by EchoTime and ComplexImageComponent \(20"
    ):
        read_image(tmp_path)


def test_times_of_slices_do_not_make_copies_images(tmp_path):
    """Each slice has a time of its own, copies too."""
    own = {"AcquisitionTime": [f"10150{k}" for k in range(4)]}
    write_slices(tmp_path, numbers(4), places=[0, 0, 1, 1], own=own)
    with pytest.raises(ImageError, match="its slices stand twice"):
        read_image(tmp_path)


def test_echoes_in_frames_are_told_apart(tmp_path):
    folder = write_frames(tmp_path, numbers(4))
    file = pydicom.dcmread(folder / "a.dcm")
    for k, frame in enumerate(file.PerFrameFunctionalGroupsSequence):
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, k // 2]
        frame.MREchoSequence = [item(EffectiveEchoTime=20.0 + 70 * (k % 2))]
    file.save_as(folder / "a.dcm")
    with pytest.raises(ImageError, match=r"2 images .* by EffectiveEchoTime \(20\.0; 90\.0\)"):
        read_image(folder)


@pytest.fixture
def flat(tmp_path):
    """A picture of 2-D ultrasound, with one region that says how large its pixels are."""
    rng = np.random.default_rng(0)
    shown = np.zeros((16, 14), np.uint8)
    shown[2:-2, 1:-1] = rng.integers(30, 255, (12, 12))
    region = item(PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3, PhysicalDeltaX=0.15)
    region.PhysicalDeltaY = 0.2
    file = picture(shown, kind=ULTRASOUND, Modality="US", SequenceOfUltrasoundRegions=[region])
    save(file, tmp_path / "us" / "a.dcm")
    return tmp_path / "us", shown


@pytest.mark.parametrize("colour", [False, True])
def test_pictures_that_do_not_say_where_they_lie_are_refused(flat, colour):
    folder, shown = flat
    if colour:
        file = pydicom.dcmread(folder / "a.dcm")
        file.SamplesPerPixel, file.PhotometricInterpretation = 3, "RGB"
        file.PlanarConfiguration = 0
        file.PixelData = np.repeat(shown[..., None], 3, -1).tobytes()
        file.save_as(folder / "a.dcm")
    with pytest.raises(
        ImageError, match="does not say where it lies in the patient, as 2-D ultra"
    ):
        read_image(folder)


@pytest.mark.slow
def test_a_picture_alone_is_synthesised_from(flat, tmp_path, capsys):
    """Its place does not matter where no other image lies on it: pixels are of 1.5 x 2 mm."""
    folder, shown = flat
    trained = make_run(tmp_path / "run", ["us", "t2"])
    options = {"us": folder, "samples": 1, "device": "cpu"}
    assert synthesize(Synthesize(trained, tmp_path / "out", **options)) == 0
    assert "does not say where it lies; its pixels are of 1.5 x 2 mm" in capsys.readouterr().out
    found = read_image(next((tmp_path / "out").glob("*_t2_mean.nii.gz")))
    assert found.data.shape == (14, 16, 1)
    np.testing.assert_allclose(np.linalg.norm(found.affine[:3, :2], axis=0), [1.5, 2])
    assert ((found.data[..., 0].T > 0) <= (shown > 0)).all()
    assert found.data.any()
    file = pydicom.dcmread(folder / "a.dcm")
    del file.SequenceOfUltrasoundRegions
    file.save_as(folder / "a.dcm")
    with pytest.raises(CaseError, match="neither where it lies nor, as an ultrasound region, how"):
        synthesize(Synthesize(trained, tmp_path / "none", **options))


def test_colours_that_lie_somewhere_are_refused(tmp_path):
    file = picture(np.zeros((4, 4), np.uint8), PixelSpacing=list(PIXEL))
    file.ImageOrientationPatient, file.ImagePositionPatient = AXIAL, [0, 0, 0]
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PlanarConfiguration = 3, "RGB", 0
    file.PixelData = bytes(48)
    save(file, tmp_path / "a.dcm")
    with pytest.raises(ImageError, match=r"its pixels are colours \(RGB\)"):
        read_image(tmp_path)
    assert len(list_series(tmp_path)) == 1
