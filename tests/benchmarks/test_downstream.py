"""The downstream benchmark segments, registers, and says so when it cannot compare."""

import json
from dataclasses import replace

import numpy as np
import pytest
from blobs import subject

from benchmarks.downstream import run, systems, table
from benchmarks.synthesis.systems import build
from examples.medical_mri_us.modalities import MODALITIES

pytestmark = pytest.mark.slow


def test_systems_are_given_all_mr_for_ultrasound_and_ultrasound_alone_for_mr():
    some = subject(modalities=["us", "t2", "flair"], shape=(2, 32, 32))
    unet, mhvae = build("unet", MODALITIES, 32), build("mhvae", MODALITIES, 32)
    assert systems.synthesiser(unet).given_for(some, "us") == ["t2", "flair"]
    assert systems.synthesiser(unet).given_for(some, "cet1") == ["us"]
    assert systems.synthesiser(mhvae).given_for(some, "us") == ["t2"]
    assert systems.synthesiser(mhvae).given_for(some, "cet1") == []
    without = subject(modalities=["us", "cet1"], shape=(2, 32, 32))
    assert systems.synthesiser(mhvae).given_for(without, "us") == []
    made = systems.synthetic(unet, some, ["t2", "flair"], "us")
    assert made.shape == some.fov.shape
    assert (made[~some.fov] == -1).all()
    assert np.ptp(made[some.fov]) > 0
    blind = replace(some, images={**some.images, "us": np.full_like(made, np.nan)})
    assert np.array_equal(systems.synthetic(unet, blind, ["t2", "flair"], "us"), made)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Runs all jobs in this process, on small patients, with systems that learnt nothing."""
    subjects = [subject(str(i), i, shape=(4, 32, 32)) for i in range(2)]
    places = [np.array([[2.0, 20.0, 20.0], [2.0, 28.0, 24.0], [4.0, 30.0, 20.0]])] * 2
    learnt = [*subjects, subject("lacks", 5, ["us", "cet1"], (4, 32, 32))]
    monkeypatch.setattr(run, "load", lambda profile: run.Data(learnt, subjects, places))
    monkeypatch.setattr(
        run, "load_trained", lambda folder, name, seed: build(name, MODALITIES, 32)
    )
    done = []

    def in_process(jobs, workers):
        for job in jobs:
            _, profile, _, task, name, seed, *_ = job.arguments
            run.do(task, name, int(seed), profile, tmp_path / profile, tmp_path)
            done.append(job.name)
        return 0

    monkeypatch.setattr(run, "run_jobs", in_process)

    def start(gate, *arguments):
        done.clear()
        few = replace(run.PROFILES["smoke"], steps=1, gate=gate, systems=("unet", "mhvae"))
        monkeypatch.setitem(run.PROFILES, "smoke", few)
        monkeypatch.setattr(
            "sys.argv", ["run", "--profile", "smoke", "--out", str(tmp_path), *arguments]
        )
        run.main()

    return start, done, tmp_path / "smoke"


def test_a_run_does_everything_once_and_its_tables_say_what_it_found(tiny, capsys):
    start, done, folder = tiny
    start(0.0)
    assert len(done) == 4 + 5
    text = capsys.readouterr().out
    assert "phantom patients" in text.splitlines()[0]
    assert "| U-Net | 3 |" in text
    assert "| MHVAE | 2 |" in text  # one patient has no T2
    kept = json.loads((folder / "registration-unet-0.json").read_text())
    cell = kept["cells"][-1]
    assert cell["bin"] == [8.0, 12.0]
    none = json.loads((folder / "registration-none-0.json").read_text())["cells"][-1]
    assert cell["initial"] == none["initial"] == none["tre"]
    assert cell["tre"] != none["tre"]
    start(0.0)
    assert done == []
    found = table.results(folder)
    assert set(found["segmentation"]) == {"true", "mr", "unet", "mhvae"}
    assert len(found["registration"]["direct"]["cells"]) == 3


def test_below_the_gate_nothing_is_compared_by_segmentation(tiny, capsys):
    start, done, _ = tiny
    with pytest.raises(SystemExit) as stopped:
        start(1.01)
    assert stopped.value.code == run.BELOW_GATE
    assert [name for name in done if name.startswith("segmentation")] == ["segmentation-true-0"]
    out, errors = capsys.readouterr()
    assert "below the gate of 1.01" in errors
    assert "below the gate of 1.01" in out
    assert "raw MR" not in out
    assert "### To T2" in out


def test_an_untrained_system_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "sys.argv",
        ["run", "--profile", "smoke", "--trained", str(tmp_path), "--out", str(tmp_path)],
    )
    with pytest.raises(SystemExit, match=r"unet-0\.safetensors.*benchmarks\.synthesis\.run"):
        run.main()


def test_tables_average_over_seeds_and_mark_what_is_missing(tmp_path):
    for seed, (dice, assd) in enumerate([([0.5, 0.0], [2.0, None]), ([0.7, 0.2], [4.0, None])]):
        content = {"task": "segmentation", "system": "unet", "seed": seed, "patients": ["a", "b"]}
        content |= {"trained_on": 3, "dice": dice, "assd": assd, "empty": 1 - seed}
        (tmp_path / f"segmentation-unet-{seed}.json").write_text(json.dumps(content))
    kept = table.results(tmp_path)["segmentation"]["unet"]
    assert kept["dice"] == pytest.approx([0.6, 0.1])
    assert kept["assd"][0] == 3.0
    assert np.isnan(kept["assd"][1])
    text = table.markdown(table.results(tmp_path), "quick")
    assert "| U-Net | 3 | 35.0 [22.5, 47.5] | 3.00 [3.00, 3.00] | 1 of 4 |" in text
