"""Reading an index and its cases: what is there, what is missing, and what is broken."""

import csv
import gzip

import nibabel as nib
import numpy as np
import pytest
import torch

from examples.medical_mri_us.data import (
    MEDIANS,
    CaseError,
    Slices,
    Subject,
    TargetSlices,
    batch_slices,
    load_subjects,
    normalise,
    read_index,
)
from examples.medical_mri_us.data.columns import image_columns
from examples.medical_mri_us.modalities import MODALITIES

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
SHAPE = (16, 16, 3)


def write(path, data, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, affine).to_filename(path)


@pytest.fixture
def index(tmp_path):
    """Three cases: the first complete, the second without FLAIR, the third with ceT1 alone."""
    rng = np.random.default_rng(0)
    held = {"a": MODALITIES, "b": MODALITIES[:3], "c": ("cet1",)}
    rows = []
    for case, present in held.items():
        fov = np.ones(SHAPE, np.uint8)
        fov[:, :2] = 0
        write(tmp_path / case / "fov.nii.gz", fov)
        write(tmp_path / case / "tumour.nii.gz", rng.integers(0, 5, SHAPE).astype(np.uint8))
        for m in present:
            image = rng.integers(1, 256, SHAPE).astype(np.uint8 if m == "us" else np.int16)
            write(tmp_path / case / f"{m}.nii.gz", image)
        files = [f"{case}/{m}.nii.gz" if m in present else "" for m in MODALITIES]
        rows.append([case, "train", *files, f"{case}/fov.nii.gz", f"{case}/tumour.nii.gz"])
    write_index(tmp_path / "index.csv", rows)
    return tmp_path / "index.csv"


def write_index(path, rows, header=("case", "split", *MODALITIES, "fov", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def load(index):
    return load_subjects(read_index(index), progress=False)


def test_an_empty_cell_is_a_missing_modality(index):
    subjects, problems = load(index)
    assert problems == []
    assert [list(s.images) for s in subjects] == [list(MODALITIES), list(MODALITIES[:3]), ["cet1"]]
    assert subjects[0].fov.shape == (3, 16, 16)
    assert not subjects[0].fov[:, :, :2].any()
    assert subjects[0].label.max() == 4


def test_volumes_are_normalised_inside_the_field_of_view(index):
    subject = load(index)[0][0]
    for m, image in subject.images.items():
        assert image.dtype == np.float32
        assert (image[~subject.fov] == -1).all()
        assert image.min() >= -1
        assert image.max() <= 1
        if m != "us":
            unit = (image[subject.fov] + 1) / 2
            # the median is that of tissue, above 2 % of the bright end
            assert np.median(unit) == pytest.approx(MEDIANS[m], abs=0.02)


def test_mr_has_no_unit():
    rng = np.random.default_rng(0)
    image, fov = rng.random((4, 4, 2), dtype=np.float32), np.ones((4, 4, 2), bool)
    np.testing.assert_allclose(
        normalise(image, fov, "t2"), normalise(1000 * image, fov, "t2"), atol=1e-5
    )
    assert normalise(np.full((1, 1, 1), 255, np.float32), fov[:1, :1, :1], "us").item() == 1.0


def test_the_median_is_that_of_tissue_not_of_background():
    image = np.full((10, 10, 1), 1, np.float32)  # mostly background in view
    image[:4] = 100
    image[0, :2] = [[200], [10]]
    fov = np.ones(image.shape, bool)
    fov[-1] = False
    unit = (normalise(image, fov, "cet1") + 1) / 2
    assert unit[1:4] == pytest.approx(MEDIANS["cet1"])
    assert unit[0, 0] == pytest.approx(2 * MEDIANS["cet1"])
    assert unit[4:-1] == pytest.approx(MEDIANS["cet1"] / 100, abs=1e-6)
    assert (unit[-1] == 0).all()


def test_intensities_without_a_scale_are_errors():
    fov = np.array([True, True, False])
    for modality in MODALITIES:
        with pytest.raises(ValueError, match=r"'image' should not be negative .* is -2\.5"):
            normalise(np.array([-2.5, 3, 1], np.float32), fov, modality)
        inside = normalise(np.array([0, 3, -1], np.float32), fov, modality)  # -1 is out of view
        assert np.isfinite(inside).all()
    for level in (0, 1e-44):
        with pytest.raises(ValueError, match="'image' should show tissue in view"):
            normalise(np.array([0, level, 9], np.float32), fov, "t2")


def test_batches_mix_patients_with_their_own_masks(index):
    slices = Slices(load(index)[0])
    assert len(slices) == 9
    x, observed, fov = batch_slices([slices[0], slices[4], slices[8]])
    assert observed.tolist() == [
        [True] * 4,
        [True, True, True, False],
        [False, False, True, False],
    ]
    assert x["us"].shape == fov.shape == (3, 1, 16, 16)
    assert x["flair"][1:].isnan().all()


def test_flips_are_lateral_and_keep_the_field_of_view_aligned(index):
    torch.manual_seed(0)
    still, flipping = Slices(load(index)[0]), Slices(load(index)[0], flip=True)
    seen = set()
    for _ in range(20):
        (images, fov), (flipped, moved) = still[0], flipping[0]
        mirrored = not torch.equal(fov, moved)
        seen.add(mirrored)
        for m in MODALITIES:
            expected = images[m].flip(-1) if mirrored else images[m]
            assert torch.equal(flipped[m], expected)
    assert seen == {True, False}


def test_rare_modalities_are_drawn_more_often(index):
    slices = Slices(load(index)[0])
    weights = np.array(slices.weights(0.6))
    assert weights.sum() == pytest.approx(1)
    # FLAIR (and ultrasound and T2 after it) is rarest: patient a has a third of the rest as well
    assert weights[:3].sum() == pytest.approx(0.6 + 0.4 / 3)


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        raw = bytearray(gzip.decompress(content))
        broken = bytearray(gzip.compress(bytes(raw)))
        broken[len(broken) // 2] ^= 1
        path.write_bytes(bytes(broken))
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not an image")
    elif how == "absent":
        path.unlink()
    elif how == "NaN":
        write(path, np.full(SHAPE, np.nan, np.float32))
    elif how == "constant":
        write(path, np.full(SHAPE, 7, np.int16))
    elif how == "z-scored":
        write(path, np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32))
    elif how == "negative":
        write(path, np.random.default_rng(0).integers(-200, -100, SHAPE).astype(np.int16))
    elif how == "faint":
        write(path, np.linspace(0, 1e-43, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE))
    elif how == "other grid":
        write(path, np.ones(SHAPE, np.int16), np.diag([1.5, 1.5, 2.5, 1.0]))
    elif how == "four dimensions":
        write(path, np.ones((*SHAPE, 2), np.int16))


@pytest.mark.parametrize(
    "how",
    ["truncated", "flipped", "empty", "text", "absent", "NaN", "constant", "z-scored", "negative",
     "faint", "other grid", "four dimensions"],
)  # fmt: skip
def test_a_broken_case_is_named_and_the_rest_go_on(index, how, capsys):
    damage(index.parent / "b" / "t2.nii.gz", how)
    subjects, problems = load(index)
    assert [s.name for s in subjects] == ["a", "c"]
    (problem,) = problems
    assert isinstance(problem, CaseError)
    assert str(problem).startswith("case b: ")
    assert "t2.nii.gz" in str(problem)
    assert str(problem) in capsys.readouterr().out


def test_an_empty_field_of_view_is_reported(index):
    write(index.parent / "c" / "fov.nii.gz", np.zeros(SHAPE, np.uint8))
    _, problems = load(index)
    assert "marks no voxel as in view" in str(problems[0])


def test_bad_indices_are_named(tmp_path):
    path = tmp_path / "index.csv"
    with pytest.raises(ValueError, match="'path' should be an index file"):
        read_index(path)
    row = ["a", "train", "a/us.nii.gz", "", "", "", "a/fov.nii.gz", ""]
    write_index(path, [row], header=("case", "split", "us", "t1", "cet1", "flair", "fov", "label"))
    with pytest.raises(ValueError, match=r"columns among case, split, .* but has .*t1"):
        read_index(path)
    write_index(path, [row, row])
    with pytest.raises(ValueError, match=r"line 3: case a stands twice"):
        read_index(path)
    write_index(path, [["a", "train", "", "", "", "", "a/fov.nii.gz", ""]])
    with pytest.raises(ValueError, match="at least one modality"):
        read_index(path)
    write_index(path, [["a", "train", "../../us.nii.gz", "", "", "", "a/fov.nii.gz", ""]])
    with pytest.raises(ValueError, match="lies outside the folder of the index"):
        read_index(path)


def test_further_columns_are_kept_as_text(index):
    """Words and numbers; what is a modality by another name, or a file, is an error."""
    first, *rest = index.read_text().splitlines()

    def read(header, cells, **options):
        lines = [f"{first},{header}", *(f"{r},{c}" for r, c in zip(rest, cells, strict=True))]
        index.write_text("\n".join(lines) + "\n")
        return read_index(index, **options)

    cases = read("age,site", ["61,Ulm", ",Bonn", "7,"])
    assert cases[0].further == {"age": "61", "site": "Ulm"}
    assert [case.further["age"] for case in cases] == ["61", "", "7"]
    for header, cells in (
        ("t1", ["", "", ""]),
        ("ceT1", ["x", "", ""]),
        ("Flare", ["x", "", ""]),
        ("t1c", ["a/t1c.nii.gz", "", ""]),
        ("other", ["a/us.nii.gz", "", ""]),
    ):
        with pytest.raises(ValueError, match=rf"columns among case, split, .* but has .*{header}"):
            read(header, cells)
    left = read("age", ["1", "2", "3"], modalities=("us", "t2", "cet1"))
    assert [set(c.images) for c in left] == [{"us", "t2", "cet1"}] * 2 + [{"cet1"}]
    assert left[0].further == {"age": "1"}


def test_identifiers_are_no_modality(index):
    """Though their cells are the names of folders; whoever asks for such modalities has them."""
    first, *rest = index.read_text().splitlines()
    lines = [f"{first},id", *(f"{r},{c}" for r, c in zip(rest, "abc", strict=True))]
    index.write_text("\n".join(lines) + "\n")
    assert image_columns(index) == MODALITIES
    assert [c.further for c in read_index(index)] == [{"id": c} for c in "abc"]


@pytest.mark.parametrize("name", ["id", "context", "valid"])
def test_words_of_batches_are_modalities_like_others(index, name):
    """A batch is told its modalities, so that its own words mean nothing else."""
    index.write_text(index.read_text().replace("cet1", name))
    for case in "abc":
        (index.parent / case / "cet1.nii.gz").rename(index.parent / case / f"{name}.nii.gz")
    names = ("us", "t2", name, "flair")
    subjects, problems = load_subjects(read_index(index, names), progress=False)
    assert problems == []
    slices = Slices(subjects)
    x, observed, _ = batch_slices([slices[0], slices[8]], names)
    assert observed.tolist() == [[True] * 4, [False, False, True, False]]
    assert torch.equal(x[name][1], slices[8][0][name])


def test_files_lie_anywhere_where_that_is_asked_for(index, tmp_path_factory):
    """By absolute paths and by links, as prepare and synthesize take them."""
    outside = tmp_path_factory.mktemp("outside") / "us.nii.gz"
    (index.parent / "a" / "us.nii.gz").rename(outside)
    (index.parent / "a" / "us.nii.gz").symlink_to(outside)
    with pytest.raises(ValueError, match="lies outside the folder of the index"):
        read_index(index)
    assert read_index(index, anywhere=True)[0].images["us"] == outside
    index.write_text(index.read_text().replace("a/us.nii.gz", str(outside)))
    with pytest.raises(ValueError, match="lies outside the folder of the index"):
        read_index(index)
    assert read_index(index, anywhere=True)[0].images["us"] == outside


def test_an_index_in_another_encoding_is_named(index):
    index.write_bytes(index.read_bytes() + "Möller,train,,,,,,\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"index\.csv, line 5: .* should be text in UTF-8"):
        read_index(index)


def test_byte_order_marks_and_blank_cells_are_read(index):
    text = index.read_text().replace(",c/", ", c/")
    index.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert [case.name for case in read_index(index)] == ["a", "b", "c"]


def test_windows_of_larger_slices_show_something():
    """Every window has some view in it, all of the view comes up, and images stay aligned."""
    i, j = np.meshgrid(np.linspace(-1, 1, 50), np.linspace(-1, 1, 40), indexing="ij")
    fov = np.stack([i**2 + j**2 < 1, (i - 0.9) ** 2 + (j + 0.9) ** 2 < 0.01])
    place = np.arange(50 * 40, dtype=np.float32).reshape(50, 40)
    volume = np.stack([place, place + 5000])
    subject = Subject("a", {"us": volume}, fov, None, targets={"us": volume + 0.5})
    slices = TargetSlices([subject], flip=True, size=16)
    torch.manual_seed(0)
    seen = np.zeros(fov.shape, bool)
    for k in range(400):
        images, targets, view = slices[k % 2]
        assert images["us"].shape == targets["us"].shape == view.shape == (1, 16, 16)
        assert view.any()
        assert torch.equal(targets["us"], images["us"] + 0.5)
        values = images["us"][view].int().numpy() % 5000
        assert fov[k % 2].ravel()[values].all()
        seen[k % 2].ravel()[values] = True
    assert (seen == fov).all()
    whole = TargetSlices([subject])[0][0]["us"]
    assert torch.equal(whole[0], torch.from_numpy(volume[0]))
