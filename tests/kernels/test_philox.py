"""Noise made in the kernel: the published generator, standard normal, the same everywhere."""

import pytest
import torch
from kernel_cases import make, prior_of, run
from scipy import stats

from mmpoe.kernels import _launch, _philox, gaussian_poe

ALL = (1 << 32) - 1


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of the authors' Random123
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL,) * 4, (1 << 64) - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, expected):
    assert tuple(_philox.words(torch.tensor(counter), key).tolist()) == expected


def kernel_noise(seed, rows, size, subsets=1):
    """Draws with given = nothing and a standard prior: z is the noise."""
    inputs = make(experts=1, rows=rows, event=(size,), subsets=subsets, prior=False)
    inputs = inputs._replace(
        given=torch.zeros_like(inputs.given),
        noise=None,
        seed=torch.tensor(seed),
        temperature=1.0,
    )
    return _launch.forward(inputs, (True, False, False, False)).z


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 200, 20000])
@pytest.mark.parametrize("seed", [0, -1, 2**62 + 12345])
def test_the_kernel_draws_what_the_reference_draws(size, seed):
    drawn = kernel_noise(seed, rows=2, size=size, subsets=3)
    expected = _philox.normal(torch.tensor(seed), 6, size).view(3, 2, size)
    torch.testing.assert_close(drawn.double(), expected, rtol=1e-5, atol=2e-6)


def test_it_is_standard_normal_and_independent():
    noise = kernel_noise(7, rows=16, size=1 << 16)[0].double()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(noise.mean()) < 5 / noise.numel() ** 0.5
    assert abs(noise.var() - 1) < 5 * (2 / noise.numel()) ** 0.5
    assert abs((noise**4).mean() - 3) < 5 * (96 / noise.numel()) ** 0.5
    bound = 5 / (1 << 16) ** 0.5
    rows = torch.corrcoef(noise) - torch.eye(16)
    assert rows.abs().max() < bound
    for lag in (1, 2, 3, 4, 16, 64):
        assert abs((noise[:, lag:] * noise[:, :-lag]).mean()) < 5 / noise.numel() ** 0.5
    squares = noise**2 - 1
    assert abs((squares[:, 1:] * squares[:, :-1]).mean()) < 5 * 2 / noise.numel() ** 0.5


def test_each_row_has_noise_of_its_own():
    noise = kernel_noise(7, rows=3, size=40, subsets=3).flatten(0, 1)
    assert len({tuple(row.tolist()) for row in noise}) == 9


def test_the_callers_generator_decides():
    inputs = make(rows=4)
    arguments = (inputs.loc, inputs.log_scale, inputs.given[0], prior_of(inputs))

    def draw(seed):
        return gaussian_poe(*arguments, generator=torch.Generator().manual_seed(seed)).z

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = gaussian_poe(*arguments).z
        second = gaussian_poe(*arguments).z
        torch.manual_seed(3)
        assert torch.equal(gaussian_poe(*arguments).z, first)
    assert not torch.equal(first, second)


def test_backward_regenerates_the_noise():
    inputs = make(rows=4, subsets=3, share=1.0, noise="seed", event=(3, 70))
    noise = _philox.normal(inputs.seed, 12, 210).view(3, 4, 3, 70).float()
    given_noise = inputs._replace(seed=None, noise=noise)
    for a, b in zip(run(inputs), run(given_noise), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
