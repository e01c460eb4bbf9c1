"""Multi-scale SSIM and GMSD: scikit-image and plain convolutions say the same."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import convolve2d
from skimage.metrics import structural_similarity

from mmpoe.metrics import gmsd, ms_ssim

RNG = np.random.default_rng(0)


def scene(height, width):
    """A truth with edges and texture, and a prediction of it."""
    rows, columns = np.mgrid[:height, :width]
    truth = 0.4 + 0.3 * np.sin(rows / 9) * np.cos(columns / 13) + 0.2 * (columns > rows)
    truth = truth + 0.05 * RNG.standard_normal(truth.shape)
    return np.clip(truth, 0, 1), np.clip(truth + 0.1 * RNG.standard_normal(truth.shape), 0, 1)


def by_scikit_image(image, truth, data_range):
    """Each scale by scikit-image, which gives contrast and structure alone as K1 grows."""
    result = 1.0
    for scale, weight in enumerate([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]):
        if scale:
            image, truth = (
                torch.nn.functional.avg_pool2d(
                    torch.from_numpy(x)[None], 2, ceil_mode=True
                ).numpy()[0]
                for x in (image, truth)
            )
        mean = structural_similarity(
            truth,
            image,
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            K1=0.01 if scale == 4 else 1e7,
        )
        result *= mean**weight
    return result


@pytest.mark.parametrize("shape", [(161, 161), (192, 177)])
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_ms_ssim_is_what_scikit_image_says_at_each_scale(shape, data_range):
    truth, image = scene(*shape)
    found = ms_ssim(data_range * image, data_range * truth, data_range=data_range)
    assert found == pytest.approx(by_scikit_image(image, truth, 1.0), rel=1e-9)
    assert 0.2 < found < 0.98


def test_ms_ssim_of_opposites_is_zero_and_of_equals_one():
    truth, _ = scene(161, 161)
    assert ms_ssim(truth, truth) == pytest.approx(1, abs=1e-12)
    assert ms_ssim(1 - truth, truth) == 0.0
    assert ms_ssim(np.stack([truth, 1 - truth]), np.stack([truth, truth])).shape == (2,)


def test_ms_ssim_of_a_small_image_says_how_large_it_should_be():
    with pytest.raises(ValueError, match=r"at least 161 pixels .* \(160, 300\)"):
        ms_ssim(np.zeros((160, 300)), np.zeros((160, 300)))


def by_convolutions(image, truth, inside):
    """GMSD as its authors wrote it: a mean filter, every other pixel, Prewitt's filters."""
    mean = np.full((2, 2), 0.25)
    a, b, f = (convolve2d(x, mean)[1::2, 1::2] for x in (image, truth, inside.astype(float)))
    prewitt = np.array([[1.0, 0, -1]] * 3) / 3
    g, h = (
        np.sqrt(convolve2d(x, prewitt, "same") ** 2 + convolve2d(x, prewitt.T, "same") ** 2)
        for x in (255 * a, 255 * b)
    )
    similarity = (2 * g * h + 170) / (g**2 + h**2 + 170)
    return np.std(similarity[f > 0.999], ddof=1)


@pytest.mark.parametrize("shape", [(24, 20), (23, 31)])
def test_gmsd_is_its_authors_definition(shape):
    truth, image = scene(*shape)
    everywhere = np.ones(shape, dtype=bool)
    if shape[0] % 2:  # what a last odd row adds to the mean filter is zero, and not in view
        everywhere[-1], everywhere[:, -1] = False, False
    found = gmsd(image, truth, mask=everywhere)
    assert found == pytest.approx(by_convolutions(image, truth, everywhere), rel=1e-9)
    mask = np.zeros(shape, dtype=bool)
    mask[3:15, 2:17] = True
    masked = gmsd(image, truth, mask=mask)
    assert masked == pytest.approx(by_convolutions(image, truth, mask), rel=1e-9)
    assert masked != found


def test_gmsd_edges():
    truth, image = scene(16, 16)
    assert gmsd(truth, truth) == 0.0
    assert np.isnan(gmsd(image, truth, mask=np.zeros((16, 16), dtype=bool)))
    np.testing.assert_allclose(
        gmsd(255 * image, 255 * truth, data_range=255.0), gmsd(image, truth), rtol=1e-9
    )


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.5))
def test_gmsd_is_symmetric_bounded_and_the_same_in_a_mirror(seed, noise):
    rng = np.random.default_rng(seed)
    truth = rng.random((12, 18))
    image = truth + noise * rng.standard_normal(truth.shape)
    value = gmsd(image, truth)
    assert 0 <= value <= 0.6
    for turn in (np.fliplr, np.flipud, np.transpose):
        assert gmsd(turn(image), turn(truth)) == pytest.approx(value)
    assert gmsd(truth, image) == pytest.approx(value)


@pytest.mark.parametrize("metric", [gmsd, ms_ssim])
def test_bad_input_is_named(metric):
    with pytest.raises(ValueError, match=r"'prediction' and 'target' .* \(24, 20\) and \(24,\)"):
        metric(np.zeros((24, 20)), np.zeros(24))
    with pytest.raises(ValueError, match=r"'data_range' should be positive, but is 0"):
        metric(np.zeros((200, 200)), np.zeros((200, 200)), data_range=0)
