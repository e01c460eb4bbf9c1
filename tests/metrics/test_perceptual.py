"""Learned distances: the numbers of the packages that they come from, and where weights are."""

import importlib.util
import warnings

import numpy as np
import pytest
import torch

from mmpoe.metrics import PerceptualWeightsUnavailable, lpips, perceptual, st_lpips

needs_lpips = pytest.mark.skipif(
    importlib.util.find_spec("lpips") is None, reason="the package lpips is not installed"
)
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("stlpips_pytorch") is None,
    reason="the package stlpips_pytorch, with the weights of ST-LPIPS, is not installed",
)


def wave(a, b):
    i = np.arange(64.0)
    return np.sin(a * i)[:, None] * np.cos(b * i)


X, Y = wave(0.3, 0.2), wave(0.35, 0.17)
NOISE = 0.3 * np.sin(1.7 * np.arange(64.0 * 64)).reshape(64, 64)
PAIRS = {
    "other waves": (X, Y),
    "noise": (X, X + NOISE),
    "shift": (X, np.roll(X, 1, axis=1)),
    "negative": (X[:50], -X[:50]),
}
PACKAGE = {
    "alex": (0.015900522, 0.010641688, 0.000366346, 0.017789938),
    "vgg": (0.080926798, 0.671323180, 0.003901825, 0.052359477),
}
"""What stlpips_pytorch 0.0.2 itself says about these pairs."""


@needs_weights
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_st_lpips_is_what_its_package_says(net):
    for (x, y), expected in zip(PAIRS.values(), PACKAGE[net], strict=True):
        found = st_lpips((y + 1) / 2, (x + 1) / 2, net=net)
        assert found == pytest.approx(expected, rel=2e-4)
    assert st_lpips(X, X, net=net) == 0.0


@needs_weights
def test_st_lpips_tolerates_shifts_and_not_noise_or_blur():
    truth = (X + 1) / 2
    rng = np.random.default_rng(0)
    shifted = st_lpips(np.roll(truth, 1, axis=0), truth)
    noisy = [st_lpips(truth + s * rng.standard_normal(truth.shape), truth) for s in (0.05, 0.1)]
    assert shifted < 0.002 < noisy[0] < noisy[1]


@needs_weights
def test_images_are_scored_one_by_one_whatever_their_range():
    images, truth = np.stack([X, Y] * 10), np.stack([Y, Y] * 10)
    found = st_lpips(127.5 * (images + 1), 127.5 * (truth + 1), data_range=255.0)
    assert found.shape == (20,)
    assert (found[1::2] == 0).all()
    np.testing.assert_allclose(found[::2], st_lpips((X + 1) / 2, (Y + 1) / 2), rtol=1e-4)
    assert st_lpips(torch.zeros(0, 40, 40), torch.zeros(0, 40, 40)).shape == (0,)


@pytest.mark.fault(45, simulated=True)
def test_without_the_package_the_message_says_how_to_get_it(monkeypatch):
    perceptual._st_lpips_weights.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PerceptualWeightsUnavailable, match=r"64 MB.*mmpoe\[metrics\].*gmsd"):
        st_lpips(X, X)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch.hub, and a squeezenet of random weights beside it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MMPOE_LPIPS_WEIGHTS", raising=False)
    perceptual._lpips_network.cache_clear()
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    torch.manual_seed(0)
    name, _ = perceptual.BACKBONES["squeeze"]
    (tmp_path / "kept").mkdir()
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "kept" / name)
    return tmp_path


@needs_lpips
def test_lpips_is_what_its_package_says_wherever_the_weights_are(hub, monkeypatch):
    name, _ = perceptual.BACKBONES["squeeze"]
    kept, cache = hub / "kept", hub / "home" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    truth, image = (X + 1) / 2, (Y + 1) / 2

    by_folder = lpips(image, truth, net="squeeze", weights=kept)
    assert lpips(image, truth, net="squeeze", weights=kept / name) == by_folder
    monkeypatch.setenv("MMPOE_LPIPS_WEIGHTS", str(kept))
    assert lpips(image, truth, net="squeeze") == by_folder
    monkeypatch.delenv("MMPOE_LPIPS_WEIGHTS")
    (cache / name).write_bytes((kept / name).read_bytes())
    assert lpips(image, truth, net="squeeze") == by_folder

    import lpips as package

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = package.LPIPS(net="squeeze", verbose=False)  # finds the file in the cache
    x, y = (torch.from_numpy(v).float().expand(1, 3, 64, 64) for v in (X, Y))
    assert by_folder == pytest.approx(theirs(y, x).item(), rel=1e-5)
    assert by_folder > 0.01
    assert lpips(truth, truth, net="squeeze") == 0.0


@pytest.mark.fault(45, simulated=False)
@pytest.mark.parametrize(("net", "size"), [("alex", "233 MB"), ("squeeze", "5 MB")])
def test_absent_weights_are_named_and_nothing_is_downloaded(hub, monkeypatch, net, size):
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("went")
    )
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("went"))
    with pytest.raises(PerceptualWeightsUnavailable) as caught:
        lpips(X, X, net=net)
    text = str(caught.value)
    name, _ = perceptual.BACKBONES[net]
    cache = hub / "home" / "hub" / "checkpoints"
    for word in (f"https://download.pytorch.org/models/{name}", size, str(cache), "st_lpips"):
        assert word in text
    with pytest.raises(PerceptualWeightsUnavailable, match=r"not at .*elsewhere"):
        lpips(X, X, net=net, weights=hub / "elsewhere")


@needs_lpips
def test_weights_of_another_network_are_an_error(hub):
    name, _ = perceptual.BACKBONES["squeeze"]
    with pytest.raises(ValueError, match=r"weights for net='vgg', but .* lacks features\.\d"):
        lpips(X, X, net="vgg", weights=hub / "kept" / name)


@needs_lpips
def test_weights_are_read_as_tensors_alone(hub):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("code in a file of weights was run",))

    torch.save({"features.0.weight": Trap()}, hub / "trap.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        lpips(X, X, net="squeeze", weights=hub / "trap.pth")


@pytest.mark.parametrize("metric", [lpips, st_lpips])
def test_bad_input_is_named(metric):
    with pytest.raises(ValueError, match=r"'net' should be one of alex, .*, but is 'resnet'"):
        metric(X, X, net="resnet")
    with pytest.raises(ValueError, match=r"at least 32 pixels .* \(64, 31\)"):
        metric(X[:, :31], X[:, :31])
