"""Image metrics: their definitions, and what they do at the edges."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from mmpoe.metrics import psnr, ssim

RNG = np.random.default_rng(0)
TRUTH = RNG.random((3, 24, 20))
IMAGE = np.clip(TRUTH + 0.1 * RNG.standard_normal(TRUTH.shape), 0, 1)
MASK = np.zeros((24, 20), dtype=bool)
MASK[4:20, 3:18] = True


def test_psnr_is_its_formula():
    error = ((IMAGE - TRUTH)[:, MASK] ** 2).mean(axis=1)
    np.testing.assert_allclose(psnr(IMAGE, TRUTH, mask=MASK), -10 * np.log10(error))
    np.testing.assert_allclose(
        psnr(2 * IMAGE, 2 * TRUTH, data_range=2.0), psnr(IMAGE, TRUTH), rtol=1e-12
    )


def test_ssim_inside_a_mask():
    expected = structural_similarity(
        TRUTH[0],
        IMAGE[0],
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    inner = np.zeros((24, 20), dtype=bool)
    inner[5:-5, 5:-5] = True  # what scikit-image averages over by itself
    assert ssim(IMAGE[0], TRUTH[0], mask=inner) == pytest.approx(expected)
    assert ssim(IMAGE, TRUTH).shape == (3,)


def test_what_lies_outside_the_mask_does_not_count():
    junk = np.where(MASK, IMAGE, 0.0)
    np.testing.assert_array_equal(psnr(junk, TRUTH, mask=MASK), psnr(IMAGE, TRUTH, mask=MASK))


def test_edges():
    assert psnr(TRUTH[0], TRUTH[0]) == np.inf
    assert ssim(TRUTH[0], TRUTH[0]) == pytest.approx(1.0)
    nothing = np.zeros((24, 20), dtype=bool)
    assert np.isnan(psnr(IMAGE[0], TRUTH[0], mask=nothing))
    assert np.isnan(ssim(IMAGE[0], TRUTH[0], mask=nothing))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_input_is_named(metric):
    with pytest.raises(
        ValueError, match=r"'prediction' and 'target' .* \(3, 24, 20\) and \(24, 20\)"
    ):
        metric(IMAGE, TRUTH[0])
    with pytest.raises(ValueError, match="'data_range' should be positive, but is 0"):
        metric(IMAGE, TRUTH, data_range=0)
    with pytest.raises(ValueError, match="'mask' should be boolean"):
        metric(IMAGE, TRUTH, mask=MASK.astype(float))
    with pytest.raises(ValueError, match=r"'mask' should broadcast .* \(3, 24, 20\)"):
        metric(IMAGE, TRUTH, mask=MASK[:5])


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_tensors_are_taken_with_their_gradients_left_behind(metric):
    image = torch.from_numpy(IMAGE).requires_grad_()
    found = metric(image, torch.from_numpy(TRUTH), mask=torch.from_numpy(MASK))
    np.testing.assert_array_equal(found, metric(IMAGE, TRUTH, mask=MASK))
    coarse = image.bfloat16()
    expected = metric(coarse.detach().double().numpy(), TRUTH)
    np.testing.assert_array_equal(metric(coarse, TRUTH), expected)
    if torch.cuda.is_available():
        np.testing.assert_array_equal(
            metric(image.cuda(), torch.from_numpy(TRUTH).cuda()), metric(IMAGE, TRUTH)
        )


def test_images_smaller_than_the_window_are_named():
    with pytest.raises(ValueError, match=r"'prediction' and 'target' .* 11 .* \(24, 10\)"):
        ssim(IMAGE[0, :, :10], TRUTH[0, :, :10])
    assert ssim(IMAGE[0, :11, :11], TRUTH[0, :11, :11]).shape == ()


def test_without_its_border_ssim_is_the_mean_of_scikit_image():
    rng = np.random.default_rng(0)
    truth = rng.random((32, 40))
    image = np.clip(truth + 0.2 * rng.standard_normal(truth.shape), 0, 1)
    inner = np.zeros(truth.shape, dtype=bool)
    inner[5:-5, 5:-5] = True
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    wanted = structural_similarity(truth, image, data_range=1.0, **options)
    assert ssim(image, truth, mask=inner) == pytest.approx(wanted, abs=1e-12)
    assert abs(ssim(image, truth) - wanted) > 1e-4
