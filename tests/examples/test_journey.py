"""From generated folders of scans to reports, made very small; and what a journey refuses."""

import nibabel as nib
import numpy as np
import pytest

from examples.medical_mri_us import journey as journey_module
from examples.medical_mri_us.journey import Journey, JourneyError, run


@pytest.mark.long
def test_bids_brats_and_ultrasound_come_to_reports(brain, tmp_path, capsys):
    small = Journey(tmp_path / "out", patients=8, held_out=1, slices=8, steps=2, samples=2)
    assert run(small) == 0
    printed = capsys.readouterr().out
    for kind in ("ultrasound", "bids", "brats"):
        report = small.out / kind / "report.html"
        assert str(report) in printed.split("Open in a browser:")[1]
        assert "Three planes of the whole volume" in report.read_text()
    assert (small.out / "bids" / "scans" / "participants.tsv").read_text().count("sub-") >= 8
    index = (small.out / "bids" / "data" / "index.csv").read_text()
    assert "age,site" in index.partition("\n")[0]
    made = [p.name for p in (small.out / "brats" / "synthetic").iterdir()]
    assert len(made) == 1
    assert made[0].startswith("BraTS-GLI-")
    index = (small.out / "brats" / "data" / "index.csv").read_text()
    assert index.startswith("case,split,patient,t2,cet1,flair,t1,fov,label")


def test_a_command_that_fails_ends_the_journey(monkeypatch):
    monkeypatch.setattr(journey_module, "parse", lambda words: (None, lambda options: 3))
    with pytest.raises(JourneyError, match="check should end with exit code 0, but ended with 3"):
        journey_module._call("check", "index.csv")


def test_volumes_that_are_absent_elsewhere_or_empty_end_the_journey(tmp_path):
    def write(name, value, affine=None):
        image = nib.Nifti1Image(
            np.full((2, 2, 2), value, np.float32), np.eye(4) if affine is None else affine
        )
        image.to_filename(tmp_path / name)
        return tmp_path / name

    like = write("given.nii.gz", 1)
    write("good.nii.gz", 1)
    journey_module._check_volumes(tmp_path, {"good.nii.gz": like})
    write("moved.nii.gz", 1, np.diag([2.0, 1, 1, 1]))
    write("empty.nii.gz", 0)
    for name, message in (
        ("none.nii.gz", "should hold none.nii.gz, but does not"),
        ("moved.nii.gz", "should lie on the grid of"),
        ("empty.nii.gz", "should show something, but is 0"),
    ):
        with pytest.raises(JourneyError, match=message):
            journey_module._check_volumes(tmp_path, {name: like})
