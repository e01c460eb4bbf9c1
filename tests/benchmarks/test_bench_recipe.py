"""The comparison of ways of training: its bound, its clock, its batches."""

import math

import pytest
import torch

import mmpoe
from benchmarks import bench_recipe
from benchmarks.bench_recipe import GIVEN, first_time, ours, published, train, validate
from examples.medical_mri_us.data import Slices, batch_slices, load_subjects, read_index
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.phantom import make_dataset
from examples.medical_mri_us.train import build_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patients")
    index = make_dataset(folder, train=3, test=1, size=16, slices=4, workers=1, progress=False)
    return load_subjects(read_index(index), progress=False)[0]


def test_the_bound_is_that_of_the_library(subjects):
    """Untrained, the scale of the model is the one of the bound."""
    slices = Slices([s for s in subjects if len(s.images) == len(MODALITIES)])
    x, observed, fov = batch = batch_slices([slices[i] for i in range(len(slices))])
    model = build_model(16).eval()
    bounds = []
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for given in GIVEN:
            output = model(x, torch.tensor(given).expand(len(observed), -1))
            b = mmpoe.elbo(output, x, observed, 0.01, valid=dict.fromkeys(x, fov))
            bounds.append((b / fov.flatten(1).sum(dim=1)).mean().item() / 4)
    assert len(GIVEN) == 15
    assert validate(model, batch) == pytest.approx(sum(bounds) / 15, rel=1e-5)


@pytest.mark.parametrize("way", [published, ours])
def test_both_ways_learn(subjects, way, capsys):
    torch.manual_seed(0)
    slices = Slices(subjects[-1:])
    test = batch_slices([slices[i] for i in range(len(slices))])
    points = train(way(build_model(16), subjects), 1.5, test, 0.5)
    assert points[-1][2] > points[0][2]
    assert points[-1][0] >= 1.5
    assert [p[0] for p in points] == sorted(p[0] for p in points)
    assert "steps" in capsys.readouterr().out


def test_a_published_batch_is_one_patient(subjects):
    batches = bench_recipe._one_patient(subjects)
    for _ in subjects:
        _, observed, _ = next(batches)
        assert len(observed) == 4
        assert (observed == observed[0]).all()


def test_time_to_a_bound():
    points = [(0.0, 0, -2.0), (10.0, 5, -1.0), (20.0, 9, -1.5)]
    assert first_time(points, -1.25) == pytest.approx(7.5)
    assert first_time(points, -1.0) == 10.0
    assert first_time(points, -0.5) == math.inf
