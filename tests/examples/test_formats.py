"""NRRD, MetaImage and NIfTI: what they have to say of themselves to be volumes."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hostile import metaimage, nifti, nrrd
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.medical_mri_us.data import ImageError, read_image


@settings(max_examples=30, deadline=None)
@given(
    suffix=st.sampled_from([".mha", ".nrrd"]),
    tracked=st.integers(0, 4),
    kind=st.sampled_from(["domain", "list", "time", "space"]),
)
def test_sweeps_are_refused(suffix, tracked, kind):
    """By the kind of an axis, or transforms of several frames: identity spacing says nothing."""
    data = np.arange(60).reshape(3, 4, 5)
    kinds = f"domain domain {kind}"
    matrix = "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"
    named = {f"Seq_Frame{k:04}_ProbeToTrackerTransform": matrix for k in range(tracked)}
    status = {f"{name}Status": "OK" for name in named}
    if suffix == ".mha":
        content = metaimage(data, Kinds=kinds, **named, **status)
    else:
        content = nrrd(data, kinds=kinds)
        keys = "".join(f"{name}:={value}\n" for name, value in {**named, **status}.items())
        content = content.replace(b"\n\n", f"\n{keys}\n".encode(), 1)
    with tempfile.TemporaryDirectory() as root:
        file = Path(root) / f"sweep{suffix}"
        file.write_bytes(content)
        if tracked > 1 or kind in ("list", "time"):
            with pytest.raises(ImageError, match=r"it is a sweep.*reconstruct a volume"):
                read_image(file)
        else:
            np.testing.assert_array_equal(read_image(file).data, data)


PLACED = {".nrrd": "space", ".mha": "TransformMatrix", ".nii": "codes"}


@pytest.mark.parametrize("suffix", PLACED)
def test_files_say_how_they_lie_in_every_format(tmp_path, suffix):
    """One rule for NIfTI without codes, NRRD without a space, MetaImage without directions."""
    data = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    path = tmp_path / f"a{suffix}"
    content = {".nrrd": nrrd, ".mha": metaimage, ".nii": nifti}[suffix](data)
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path).data, data)
    if suffix == ".nii":
        content = nifti(data, sform_code=0, qform_code=0)
    else:
        name = PLACED[suffix].encode()
        lines = content.split(b"\n")
        (line,) = (v for v in lines if v.startswith((name + b":", name + b" =")))
        content = content.replace(line + b"\n", b"", 1)
    path.write_bytes(content)
    with pytest.raises(
        ImageError, match=r"does not say how it lies in space .*; write its header"
    ):
        read_image(path)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("scanner-xyz", None),
        ("3D-right-handed", None),
    ],
)
def test_spaces_of_nrrd_are_those_of_a_patient_or_refused(tmp_path, space, signs):
    path = tmp_path / "a.nrrd"
    path.write_bytes(nrrd(np.ones((3, 4, 5)), space=space, space_origin="(1,2,3)"))
    if signs is None:
        with pytest.raises(ImageError, match=f"its space is '{space}', none of left-post"):
            read_image(path)
    else:
        wanted = np.diag([*signs, 1.0]) @ np.array(
            [[1.5, 0, 0, 1], [0, 1.5, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]]
        )
        np.testing.assert_allclose(read_image(path).affine, wanted)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.NII.GZ", "a.nrrd", "a.mha"])
def test_empty_files_are_named(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ImageError, match=rf"{name} cannot be read: it is empty; copy or export"):
        read_image(tmp_path / name)
