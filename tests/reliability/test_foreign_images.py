"""Images that are damaged or hostile: each is an error of its own case, which names the file."""

import csv
import gzip
import hashlib
import resource
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sitk = pytest.importorskip("SimpleITK", reason="the example needs SimpleITK")
pytest.importorskip("pydicom", reason="the example needs pydicom")

from hostile import damaged_images, detached_images, metaimage, nifti, nrrd, write_itk  # noqa: E402
from volumes import make_run, volume, write, write_index  # noqa: E402

from examples.medical_mri_us import __main__ as cli  # noqa: E402
from examples.medical_mri_us.data import ImageError, read_image  # noqa: E402
from examples.medical_mri_us.synthesis.files import hash_of  # noqa: E402

DATA = volume(0).astype(np.uint8)
SET = ["size=16", "model.widths=[8]", "model.latents=[2]", "training.steps=1", "training.batch=2"]


@pytest.fixture
def answer(monkeypatch, capsys):
    """Runs a command line and returns its exit code and what it says."""

    def ask(*arguments):
        monkeypatch.setattr(sys, "argv", ["mri_us", *map(str, arguments)])
        code = cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out + said.err

    return ask


def flipped(content, bit):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


WRITERS = {".mha": metaimage, ".nrrd": nrrd, ".nii.gz": lambda d: gzip.compress(nifti(d))}


@pytest.fixture(scope="module", params=WRITERS)
def compressed(request, tmp_path_factory):
    """A compressed file, and where its compressed part begins."""
    noise = np.random.default_rng(0).integers(1, 255, (16, 16, 6)).astype(np.uint8)
    content = WRITERS[request.param](noise)
    start = {".mha": b"LOCAL\n", ".nrrd": b"\n\n"}.get(request.param)
    path = tmp_path_factory.mktemp("flipped") / f"a{request.param}"
    return path, content, content.index(start) + len(start) if start else 0, noise


@pytest.mark.fault(4)
@pytest.mark.fault(56)
def test_every_flipped_bit_is_found(compressed):
    """300 of 300: behind the ten bytes of gzip's header, which say nothing of the voxels."""
    path, content, start, noise = compressed
    bits = np.random.default_rng(1).integers(8 * (start + 10), 8 * len(content) - 8, 300)
    for bit in bits:
        path.write_bytes(flipped(content, int(bit)))
        with pytest.raises(ImageError, match=path.name):
            read_image(path)
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path).data, noise)


@pytest.mark.fault(3)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_what_is_cut_is_found(compressed, kept):
    path, content, start, _ = compressed
    path.write_bytes(content[: start + int(kept * (len(content) - start))])
    with pytest.raises(ImageError, match=path.name):
        read_image(path)


@pytest.mark.fault(56)
@given(data=st.data())
def test_no_flipped_bit_changes_voxels(compressed, data):
    """Any bit of the compressed part: an error, or every voxel as it was."""
    path, content, start, noise = compressed
    bit = data.draw(st.integers(8 * start, 8 * len(content) - 1))
    path.write_bytes(flipped(content, bit))
    try:
        found = read_image(path)
    except ImageError:  # as it should be for all bits but those that gzip does not use
        pass
    else:
        np.testing.assert_array_equal(found.data, noise)


@pytest.fixture
def hostile(tmp_path):
    """An index with two whole cases, and one for each kind of damage."""
    index = write_index(tmp_path, {"whole-1": ("us", "t2"), "whole-2": ("us", "t2")}, ("us", "t2"))
    outside = tmp_path.parent / f"{tmp_path.name}.raw"
    outside.write_bytes(DATA.tobytes("F"))
    found = {**damaged_images(tmp_path, DATA), **detached_images(tmp_path, outside, DATA)}
    rows = [[f"bad-{n}", "train", "whole-1/us.nii.gz", p.name] for n, p in found.items()]
    with index.open("a", newline="") as file:
        csv.writer(file).writerows(rows)
    yield index, found
    outside.unlink()


@pytest.mark.fault(57)
@pytest.mark.fault(58)
@pytest.mark.fault(59)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_each_is_an_error_that_names_the_file(hostile):
    _, found = hostile
    for name, path in found.items():
        with pytest.raises(ImageError) as raised:
            read_image(path)
        assert str(path) in str(raised.value), name
        assert len(str(raised.value)) < 500 + len(str(path))
        if name.endswith(("-mhd", "-mha", "-nhdr", "-nrrd")):
            words = "no regular file" if "pipe" in name else "outside its folder"
            assert words in str(raised.value), name


@pytest.mark.slow
@pytest.mark.fault(57)
@pytest.mark.fault(58)
@pytest.mark.fault(59)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize(
    ("subcommand", "code"), [("check", 3), ("prepare", 1), ("synthesize", 1), ("train", 0)]
)
def test_each_case_fails_alone(hostile, tmp_path, answer, subcommand, code):
    """With the documented exit code: all of them are named, and those that are whole are used."""
    index, found = hostile
    out = tmp_path / "out"
    changes = [word for entry in SET for word in ("--set", entry)]
    arguments = {
        "check": [index, "--modalities", "us", "t2"],
        "prepare": ["--index", index, "--modalities", "us", "t2", "--size", 16, "--out", out],
        "synthesize": [tmp_path / "run", "--input-dir", index, "--target", "us", "--out", out,
                       "--samples", 1],
        "train": ["--data", index, "--out", out, "--set", "modalities=['us','t2']", *changes],
    }  # fmt: skip
    if subcommand == "synthesize":
        make_run(tmp_path / "run", modalities=("us", "t2"))
    found_code, said = answer(subcommand, *arguments[subcommand])
    assert found_code == code, said
    for name, path in found.items():
        lines = [line for line in said.splitlines() if f"bad-{name}:" in line]
        assert lines, name
        assert all(str(path) in line for line in lines)
    if subcommand != "check":
        assert any(out.rglob("whole-1*")) or (out / "model" / "model.json").exists()


@pytest.mark.slow
@pytest.mark.fault(58)
def test_a_header_gets_no_memory_for_what_is_not_there(tmp_path):
    """1.8 KB that claim 2.4 GB: an error within memory that has no room for them."""
    path = tmp_path / "claim.nii"
    path.write_bytes(nifti(DATA, dim=[3, 1000, 1000, 500, 1, 1, 1, 1]))
    code = (
        "import resource, sys\n"
        "from examples.medical_mri_us.data import ImageError, read_image\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, size + 2**28))\n"
        "try:\n"
        "    read_image(sys.argv[1])\n"
        "except ImageError as error:\n"
        "    assert 'more memory' not in str(error), error\n"
        "    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "refused\n"
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


@pytest.mark.fault(59)
@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_the_digest_of_a_detached_header_covers_its_voxels(tmp_path, suffix):
    path = write_itk(tmp_path / f"a{suffix}", DATA)
    (other,) = [p for p in tmp_path.iterdir() if p != path]
    both = hashlib.sha256(path.read_bytes() + other.read_bytes()).hexdigest()
    assert hash_of(path) == both
    content = other.read_bytes()
    other.write_bytes(flipped(content, 80))
    assert hash_of(path) != both


@pytest.mark.fault(59)
def test_a_device_is_no_image(tmp_path):
    (tmp_path / "zero.nii").symlink_to("/dev/zero")
    with pytest.raises(ImageError, match="no regular file"):
        read_image(tmp_path / "zero.nii")


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    "kind", ["uint8", "int8", "int16", "uint16", "int32", "int64", "float32", "float64"]
)
def test_voxels_and_places_are_those_of_simpleitk(tmp_path, suffix, compress, kind):
    """To the last bit, for an oblique volume of any type."""
    rng = np.random.default_rng(0)
    data = rng.integers(-100 if kind[0] in "if" else 0, 100, (5, 4, 3)).astype(kind)
    image = sitk.GetImageFromArray(data.T.copy())
    c, s = np.cos(0.3), np.sin(0.3)
    image.SetDirection((c, -s, 0, s, c, 0, 0, 0, 1))
    image.SetSpacing((0.513, 0.7, 1.1))
    image.SetOrigin((-3.3, 4.4, 5.5))
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image, str(path), compress)
    found, wanted = read_image(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(found.data, sitk.GetArrayFromImage(wanted).T)
    lps = np.reshape(wanted.GetDirection(), (3, 3)) * wanted.GetSpacing()
    np.testing.assert_array_equal(found.affine[:3, :3], np.diag([-1, -1, 1]) @ lps)
    np.testing.assert_array_equal(found.affine[:3, 3], np.diag([-1, -1, 1]) @ wanted.GetOrigin())
    assert found.data.flags.c_contiguous


@pytest.mark.parametrize(
    "content",
    [
        nrrd(DATA, DATA.astype(">i2").tobytes("F"), type="short", endian="big", encoding="raw"),
        nrrd(DATA, b"xx" + DATA.tobytes("F"), encoding="raw", byte_skip=2),
        nrrd(DATA, b"xx" + DATA.tobytes("F"), encoding="raw", byte_skip=-1),
        nrrd(DATA, b"x\ny\n" + DATA.tobytes("F"), encoding="raw", line_skip=2),
        nrrd(DATA, " ".join(map(str, DATA.ravel("F"))).encode(), encoding="ascii"),
        nrrd(DATA, DATA.tobytes("F").hex().encode(), encoding="hex"),
        metaimage(DATA, b"xx" + DATA.tobytes("F"), CompressedData=False, HeaderSize=-1),
        metaimage(DATA, zlib.compress(DATA.astype(">i2").tobytes("F")), ElementType="MET_SHORT",
                  BinaryDataByteOrderMSB=True),
    ],
)  # fmt: skip
def test_other_ways_to_store_voxels(tmp_path, content):
    path = tmp_path / ("a.nrrd" if content.startswith(b"NRRD") else "a.mha")
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path).data, DATA)
    np.testing.assert_array_equal(
        read_image(path).data, sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (nrrd(DATA, b""), "incomplete"),
        (nrrd(DATA, encoding="raw"), "768 bytes of voxels, but it holds"),
        (nrrd(DATA, encoding="bzip2"), "its encoding is 'bzip2'"),
        (nrrd(DATA, type="block"), "its type is 'block'"),
        (nrrd(DATA, type="short"), "its endian is ''"),
        (nrrd(DATA, sizes="16 16"), "inflates to more than the 256 bytes"),
        (nrrd(DATA, sizes="16 -16 3"), "should be positive integers"),
        (nrrd(DATA, data_file="LIST"), "in several files"),
        (nrrd(DATA, data_file="a%02d.raw 1 3 1"), "in several files"),
        (nrrd(DATA, byte_skip=3), "in raw files alone"),
        (nrrd(DATA).replace(b"kinds:", b"sizes:"), "says 'sizes' twice"),
        (nrrd(DATA, b"1 2 3", encoding="ascii"), "other than 3 voxels"),
        (metaimage(DATA, BinaryData=False), "its voxels are text"),
        (metaimage(DATA, ElementType="MET_OTHER"), "its ElementType is 'MET_OTHER'"),
        (metaimage(DATA, DimSize="16 16 4"), "1024 bytes of voxels, but it holds 768"),
        (metaimage(DATA, ElementDataFile="LIST"), "in several files"),
        (metaimage(DATA) + metaimage(DATA), "damaged"),
        (b"ObjectType = Image\n", "ElementDataFile"),
        (b"x" * 2**21, "does not end within"),
    ],
)
def test_headers_that_are_refused(tmp_path, content, words):
    path = tmp_path / ("a.nrrd" if content.startswith(b"NRRD") else "a.mha")
    path.write_bytes(content)
    with pytest.raises(ImageError, match=words):
        read_image(path)


def test_what_is_left_over_in_a_compressed_nifti_is_put_up_with(tmp_path):
    content = nifti(DATA)
    members = gzip.compress(content[:500]) + gzip.compress(content[500:] + bytes(9)) + bytes(7)
    (tmp_path / "a.nii.gz").write_bytes(members)
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").data, DATA)


def test_a_grid_that_would_not_fit_into_memory(tmp_path, answer):
    """Voxels of 10 mm at a spacing of 0.1 mm are a million times as many: that case fails."""
    sparse = np.diag([10.0, 10.0, 10.0, 1.0])
    write(tmp_path / "a" / "us.nii.gz", volume(0, (64, 64, 64)), sparse)
    write(tmp_path / "b" / "us.nii.gz", volume(1))
    index = tmp_path / "index.csv"
    index.write_text("case,split,us\na,train,a/us.nii.gz\nb,train,b/us.nii.gz\n")
    arguments = ("--index", index, "--out", tmp_path / "out", "--spacing", 0.1, "--size", 16)
    code, said = answer("prepare", *arguments)
    assert code == 1
    assert "Failed: case a: " in said
    assert "at most 536870912" in said
