"""Cases on disk give the slices of cases in memory, hold none of them, and notice what changed."""

import os
import pickle
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from volumes import AFFINE, SHAPE, SMALL, volume, write, write_index

from examples.medical_mri_us.data import (
    CaseError,
    Image,
    TargetSlices,
    WeightedBatches,
    axis_codes,
    batch_targets,
    load_subjects,
    read_index,
    reorient,
    store_subjects,
    stored,
    turn_alike,
    turned,
)
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.subcommands.train import _stored
from examples.medical_mri_us.train import Settings, train
from examples.medical_mri_us.windows import pad_subjects

HELD = {"a": MODALITIES, "b": ("us", "t2"), "c": ("cet1", "flair")}


def both(index, modalities=MODALITIES):
    """The cases of an index, in memory and stored."""
    cases = read_index(index, modalities)
    memory, _ = load_subjects(cases, progress=False)
    disk, problems = store_subjects(cases, index.parent / "slices", progress=False)
    assert problems == []
    return memory, disk


def assert_alike(memory, disk):
    assert [s.name for s in memory] == [s.name for s in disk]
    for one, other in zip(memory, disk, strict=True):
        assert one.shape == other.shape
        assert np.array_equal(one.shown, other.shown)
        assert one.spacing == pytest.approx(other.spacing)
        np.testing.assert_allclose(one.affine, other.affine)
        for k in range(one.shape[0]):
            for a, b in zip(one.cut(k)[:2], other.cut(k)[:2], strict=True):
                assert list(a) == list(b)
                for m in a:
                    assert a[m].dtype == b[m].dtype == np.float32
                    assert np.array_equal(a[m], b[m])
            assert np.array_equal(one.cut(k)[2], other.cut(k)[2])


def test_slices_on_disk_are_those_in_memory(tmp_path):
    """Bit for bit: whole numbers and others, with and without a view and targets."""
    index = write_index(tmp_path, HELD)
    write(tmp_path / "c/cet1.nii.gz", np.rint(20 * volume(7)).astype(np.int16))
    dark = volume(8)
    dark[..., 1] = 0
    write(tmp_path / "b/us.nii.gz", dark)
    memory, disk = both(index)
    assert not memory[1].shown.all()
    assert_alike(memory, disk)
    kinds = {p.name: np.load(p).dtype for p in (tmp_path / "slices/c").glob("*.npy")}
    assert kinds == {"cet1.npy": np.uint16, "flair.npy": np.float32, "fov.npy": np.uint8}
    assert np.load(tmp_path / "slices/c/fov.npy").shape == (3, 16, 2)  # a bit for each voxel


def test_targets_and_views_of_their_own_are_stored(tmp_path):
    view = np.zeros(SHAPE, np.uint8)
    view[3:, 2:11, :2] = 1
    write(tmp_path / "a/fov.nii.gz", view)
    for k, name in enumerate(("us", "t2", "target_t2")):
        data = volume(k)
        data[view == 0] = -5.5  # is never looked at
        write(tmp_path / f"a/{name}.nii.gz", data)
    files = ",".join(f"a/{name}.nii.gz" for name in ("us", "t2", "target_t2", "fov"))
    index = tmp_path / "index.csv"
    index.write_text(f"case,split,us,t2,target_t2,fov\na,train,{files}\n")
    memory, disk = both(index)
    assert_alike(memory, disk)
    assert list(disk[0].targets) == ["t2"]
    fewer, _ = store_subjects(read_index(index, ("us",)), tmp_path / "slices", progress=False)
    assert list(fewer[0].images) == ["us"]


@pytest.mark.parametrize("axes", ["LPS", "PLS", "ARI", "RPI"])
def test_slices_on_disk_are_turned_and_padded_as_in_memory(axes, tmp_path):
    rows = []
    for k, (case, codes) in enumerate({"a": axes, "b": "RAS", "c": axes}.items()):
        image = reorient(Image(volume(k, (12, 17, 3)), AFFINE), codes)
        write(tmp_path / case / "t2.nii.gz", image.data, image.affine)
        rows.append(f"{case},train,{case}/t2.nii.gz")
    index = tmp_path / "index.csv"
    index.write_text("\n".join(["case,split,t2", *rows]) + "\n")
    memory, disk = (turn_alike(found) for found in both(index, ("t2",)))
    assert {axis_codes(s.affine) for s in disk} == {axes}
    assert_alike(memory, disk)
    assert_alike(*(pad_subjects(found, 15) for found in (memory, disk)))
    with pytest.raises(ValueError, match="'axes' should turn slices of a within their plane"):
        turned(disk[0], "SRP").cut(0)


def test_what_was_stored_is_not_read_again(tmp_path, monkeypatch):
    """Unless a file has changed, or what is stored has another format or is cut short."""
    index = write_index(tmp_path, {"a": ("us", "t2")})
    read, found = [], stored.read_volumes

    def watched(case):
        read.append(case.name)
        return found(case)

    monkeypatch.setattr(stored, "read_volumes", watched)
    place = tmp_path / "slices/a"

    def times():
        before = len(read)
        memory, disk = both(index)
        assert_alike(memory, disk)
        return len(read) - before

    assert [times(), times()] == [1, 0]
    write(tmp_path / "a/t2.nii.gz", volume(99))
    assert [times(), times()] == [1, 0]
    os.utime(tmp_path / "a/us.nii.gz", (0, 0))  # as a copy of it has
    assert times() == 0
    write(tmp_path / "a/us.nii", volume(98))
    index.write_text(index.read_text().replace("us.nii.gz", "us.nii"))
    assert [times(), times()] == [1, 0]
    os.utime(tmp_path / "a/us.nii", (0, 0))
    assert [times(), times()] == [1, 0]
    (place / "t2.npy").write_bytes((place / "t2.npy").read_bytes()[:-9])
    assert [times(), times()] == [1, 0]
    about = (place / "case.json").read_text()
    dark = re.sub(r'"t2": [\d.]+', '"t2": 0.0', about)
    for text in (about.replace('"format": 1', '"format": 0'), dark, about[:-4], "{}", "[7]"):
        (place / "case.json").write_text(text)
        assert [times(), times()] == [1, 0]
    (place / "fov.npy").unlink()
    assert [times(), times()] == [1, 0]
    # without a view of its own, that of a case depends on what else there is
    fewer, _ = store_subjects(read_index(index, ("t2",)), tmp_path / "slices", progress=False)
    assert len(read) == 11 + 1
    assert list(fewer[0].images) == ["t2"]


def test_a_case_that_another_process_has_stored_is_left_alone(tmp_path, monkeypatch):
    """It may be read already."""
    index = write_index(tmp_path, {"a": ("us", "t2")})
    (case,) = read_index(index, MODALITIES)
    found = stored.read_volumes

    def slow(case):
        monkeypatch.setattr(stored, "read_volumes", found)
        stored.store_subject(case, tmp_path / "slices")
        made.append((tmp_path / "slices/a").stat().st_ino)
        return found(case)

    made = []
    monkeypatch.setattr(stored, "read_volumes", slow)
    stored.store_subject(case, tmp_path / "slices").cut(0)
    assert made == [(tmp_path / "slices/a").stat().st_ino]


def test_slices_go_to_the_run_where_the_data_are_read_only(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    assert _stored(tmp_path / "data/index.csv", tmp_path / "run") == tmp_path / "data/slices"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert _stored(tmp_path / "data/index.csv", tmp_path / "run") == tmp_path / "run/slices"


def test_a_bit_that_flips_is_told(tmp_path):
    index = write_index(tmp_path, {"a": ("us", "t2")})
    _, (subject,) = both(index)
    file = tmp_path / "slices/a/t2.npy"
    content = bytearray(file.read_bytes())
    content[-7] ^= 4
    file.write_bytes(bytes(content))
    subject.cut(0)
    with pytest.raises(CaseError, match=r"case a: .*t2\.npy is damaged in slice 2; remove"):
        subject.cut(2)
    shutil.rmtree(tmp_path / "slices/a")
    with pytest.raises(CaseError, match=r"case a: .*us\.npy cannot be read"):
        subject.cut(0)


def test_cases_that_cannot_be_used_are_left_out_by_name(tmp_path):
    index = write_index(tmp_path, HELD)
    (tmp_path / "b/t2.nii.gz").write_bytes(b"no image")
    write(tmp_path / "c/flair.nii.gz", 0 * volume(0))
    disk, problems = store_subjects(
        read_index(index, MODALITIES), tmp_path / "slices", progress=False
    )
    assert [s.name for s in disk] == ["a"]
    assert [str(p).split(":")[0] for p in problems] == ["case b", "case c"]
    assert sorted(p.name for p in (tmp_path / "slices").iterdir()) == ["a"]


def test_a_stored_case_takes_no_memory_for_its_voxels(tmp_path):
    write(tmp_path / "a/us.nii.gz", volume(0, (64, 64, 40)))
    index = tmp_path / "index.csv"
    index.write_text("case,split,us\na,train,a/us.nii.gz\n")
    _, (subject,) = both(index, ("us",))
    subject.cut(3)
    assert len(pickle.dumps(subject)) < 64 * 64 * 40 / 50


@pytest.fixture
def disk(tmp_path):
    return both(write_index(tmp_path / "data", HELD))[1]


def batches(subjects, workers):
    slices = TargetSlices(pad_subjects(subjects, 20), flip=True, size=12)
    sampler = WeightedBatches(slices.weights(0.3), 2, 5)
    collate = partial(batch_targets, modalities=MODALITIES)
    torch.manual_seed(0)
    return list(DataLoader(slices, batch_sampler=sampler, collate_fn=collate, num_workers=workers))


def test_workers_load_the_batches_that_one_process_loads(disk):
    """Places, windows and mirrors, since each sample has a seed."""
    for one, other in zip(batches(disk, 0), batches(disk, 1), strict=True):
        for a, b in zip(one[:2], other[:2], strict=True):
            for m in a:
                np.testing.assert_array_equal(a[m], b[m])  # NaN where one is missing
        assert torch.equal(one[2], other[2])
        assert torch.equal(one[3], other[3])


class Stop(Exception):
    """Ends a training run at once."""


@pytest.mark.slow
@pytest.mark.fault(36, simulated=True)
def test_training_resumes_in_a_pass_without_reading_it_again(disk, tmp_path, monkeypatch):
    """To the bits of training that was not stopped, in memory as on disk, with any workers."""
    settings = Settings(steps=3, minutes=None, batch=2, accumulate=2, save_every=2)
    options = {"network": SMALL, "progress": False, "size": 16}
    whole, _ = train(disk, settings, keep=tmp_path / "whole", **options)

    cut, read = stored.StoredSubject.cut, []

    def watched(self, k):
        read.append(k)
        if len(read) == 3 * 2 * 2 - 3:  # in the last step
            raise Stop
        return cut(self, k)

    with monkeypatch.context() as patch:
        patch.setattr(stored.StoredSubject, "cut", watched)
        with pytest.raises(Stop):
            train(disk, settings, keep=tmp_path / "cut", **options)
        assert (tmp_path / "cut/checkpoints/step-00000002").exists()
        read.clear()
        again, _ = train(disk, settings, keep=tmp_path / "cut", resume=True, **options)
        assert len(read) == 2 * 2  # those of the last step
    other, _ = train(disk, settings, keep=tmp_path / "workers", workers=1, **options)
    for found in (again, other):
        pairs = zip(whole.parameters(), found.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
