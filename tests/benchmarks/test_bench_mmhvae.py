"""The twin says what the published code says, and the benchmark fails when it should."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import _published as published
from benchmarks import bench_mmhvae
from benchmarks.bench_mmhvae import NAMES, TINY, build
from examples.medical_mri_us.official_names import published_state

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "published_mmhvae.npz")
ARCHITECTURE = {
    "modalities": NAMES,
    "size": 32,
    "depth": 4,
    "width": 8,
    "max_width": 16,
    "blocks": 1,
    "head_width": 8,
}
CHECKOUT = """
from benchmarks._published import PublishedWay

def MHVAE2D(modalities, base_num_features, num_pool, original_shape, max_features, with_residual,
            with_se, nfeat_finalblock, nb_finalblocks):
    assert with_residual and with_se and original_shape == (32, 32)
    return PublishedWay(modalities, 32, num_pool + 1, base_num_features, max_features,
                        nb_finalblocks, nfeat_finalblock)
"""


@pytest.fixture
def checkout(tmp_path):
    """Makes a folder that looks like one of the published code, with a module of some text."""

    def make(text=CHECKOUT):
        (tmp_path / "network").mkdir()
        (tmp_path / "network" / "mhvae.py").write_text(text)
        return tmp_path

    yield make
    for name in ("network", "network.mhvae"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("i", range(4))
def test_numbers_of_the_published_code(i):
    keys = [key for key in GOLDEN.files if key.startswith("sd/")]
    state = {key.removeprefix("sd/"): torch.from_numpy(GOLDEN[key]).double() for key in keys}
    x = {m: torch.from_numpy(GOLDEN[f"x/{m}"]).double() for m in map(str, GOLDEN[f"s{i}/subset"])}
    network = published.load(state, ARCHITECTURE).double()
    network.load_state_dict(state)
    noise = [torch.from_numpy(GOLDEN[f"s{i}/z{level}/eps"]).double() for level in (4, 3, 2, 1)]
    with torch.no_grad(), published.with_noise(noise):
        images, _ = network(x)
    for m in NAMES:
        expected = torch.from_numpy(GOLDEN[f"float64/s{i}/img/{m}"])
        elements = np.linspace(0, images[m].numel() - 1, len(expected)).astype(int)
        error = (images[m].flatten()[torch.from_numpy(elements)] - expected).abs().max()
        assert error <= 1e-10 * expected.abs().max()


def test_both_ways_are_the_same_network():
    pair = build(TINY, None)
    differences = bench_mmhvae.check_inference(pair) | bench_mmhvae.check_loss(pair)
    differences |= bench_mmhvae.check_gradients(pair)
    assert len(differences) == 7
    assert bench_mmhvae.report_differences(differences) == []


@pytest.mark.parametrize("name", ["qz.1.conv_0.bias", "final_blocks.cet1.convt3.bias"])
def test_other_weights_are_another_network(name):
    pair = build(TINY, None)
    with torch.no_grad():
        dict(pair.theirs.named_parameters())[name][0] += 0.1
    wrong = bench_mmhvae.report_differences(bench_mmhvae.check_inference(pair))
    # instance normalisation takes away what the first of them adds
    assert (wrong != []) == name.startswith("final")


def test_multiplications_are_counted(capsys):
    """As published, and fewer of the experts' first convolutions from several inputs."""
    bench_mmhvae.show_macs(build(TINY._replace(batch=1), None))
    rows = [line.split()[-2:] for line in capsys.readouterr().out.splitlines()]
    theirs, ours = zip(*(map(float, row) for row in rows), strict=True)
    assert len(rows) == 4
    assert ours[0] == theirs[0]
    assert all(a < b for a, b in zip(ours[1:], theirs[1:], strict=True))
    saved = theirs[3] - ours[3]
    assert saved == pytest.approx(3 * (theirs[1] - ours[1]), abs=2e-3)


def test_nan_is_a_difference():
    assert bench_mmhvae.report_differences({"images": float("nan")}) != []


def test_a_broken_promise_is_a_failure(capsys):
    assert bench_mmhvae.show("a step", [2.0, 2.0, 9.0], [1.0, 1.0, 1.0], 2.0) == []
    assert "2.00x    2.00  9.00     2.00x" in capsys.readouterr().out
    assert bench_mmhvae.show("a step", [2.0], [1.0], 2.5) == ["a step: 2.00x, 2.5x promised"]


def test_a_checkout_is_used(checkout):
    pair = build(TINY, checkout())
    assert bench_mmhvae.report_differences(bench_mmhvae.check_loss(pair)) == []


def test_older_names_of_weights():
    state = published_state(build(TINY, None).ours)
    older = {published._older(name) for name in state}
    assert "qz.0.last_conv.weight_g" in older
    assert {published.published_name(name) for name in older} == set(state)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_that_name", r"should hold code that runs"),
        ("", r"should hold MHVAE2D in .*, but there is no such class"),
        (CHECKOUT.replace("max_features,\n     ", "max_features + 2,\n     "), r"weights differ"),
    ],
)
def test_another_checkout_is_an_error(checkout, text, message):
    with pytest.raises(ValueError, match=message):
        build(TINY, checkout(text))


def test_a_folder_of_something_else_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_mmhvae", "--smoke", "--official", str(tmp_path)])
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit, match=r"'checkout' should be a folder of the published code"):
        bench_mmhvae.main()
    torch.set_num_threads(threads)
