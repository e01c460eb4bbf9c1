"""What all systems of the synthesis benchmark promise, and what some of them do."""

import pytest
import torch
from torch import nn

from benchmarks.synthesis.systems import SYSTEMS, build
from benchmarks.synthesis.systems.common import mean_error, paste, stack
from benchmarks.synthesis.systems.m2dn import TIMES, _mix, _step
from benchmarks.synthesis.systems.mmgan import _give_back
from mmpoe.models import MultimodalVAE

pytestmark = pytest.mark.slow

MODALITIES = ["us", "t2", "cet1", "flair"]
SIZE = 32
ADVERSARIAL = ["mmgan", "resvit"]


def make(name, seed=0):
    torch.manual_seed(seed)
    return build(name, MODALITIES, SIZE)


def batch(missing=0.0, rows=5):
    """Smooth images, an own pattern for each row, and fields of view that are not everything."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(rows, 4, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(1.6 * coarse - 0.8, SIZE, mode="bilinear")
    observed = torch.tensor(
        [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool
    )[:rows]
    fov = torch.ones(rows, 1, SIZE, SIZE, dtype=torch.bool)
    fov[..., :5] = False
    images = torch.where(fov, smooth, -1)
    x = {
        m: torch.where(observed[:, c, None, None, None], images[:, [c]], missing)
        for c, m in enumerate(MODALITIES)
    }
    return x, observed, fov


def given_of(system, observed):
    """All that a row observed, of what the system can be given."""
    return observed & torch.tensor([m in system.handled for m in MODALITIES])


@pytest.fixture(params=list(SYSTEMS))
def name(request):
    return request.param


def test_every_system_shows_all_that_it_handles_within_range(name):
    system = make(name)
    x, observed, _ = batch()
    images = system.synthesise(x, given_of(system, observed), system.handled)
    assert list(images) == system.handled
    for image in images.values():
        assert image.shape == (5, 1, SIZE, SIZE)
        assert not image.requires_grad
        assert image.abs().max() <= 1
    assert system.network.training  # as it was before
    assert system.lr == 2e-3  # that of all slim systems


def test_only_targets_are_returned(name):
    system = make(name)
    x, observed, _ = batch()
    assert list(system.synthesise(x, given_of(system, observed), ["t2"])) == ["t2"]
    with pytest.raises(ValueError, match=r"pet"):
        system.synthesise(x, given_of(system, observed), ["pet"])


@pytest.mark.parametrize("value", [7.0, torch.nan])
def test_missing_images_are_never_read(name, value):
    results = []
    for missing in (0.0, value):
        system = make(name)
        data = batch(missing)
        torch.manual_seed(3)
        loss = system.loss(data, 0.5)
        loss.sum().backward()
        gradients = [p.grad.clone() for p in system.network.parameters() if p.grad is not None]
        if system.adversary is not None:
            gradients.append(system.adversary.loss(system.adversary.network, data, 0.5))
        given = given_of(system, data[1])
        images = system.synthesise(data[0], given, system.handled)
        results.append([loss, *gradients, *images.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(a.isfinite().all() for a in results[1])


def test_what_is_not_given_is_never_read(name):
    system = make(name)
    x, _, _ = batch(missing=0.3)
    given = torch.tensor([[True, False, False, False]]).expand(5, 4)
    hidden = {m: v if m == "us" else torch.full_like(v, torch.nan) for m, v in x.items()}
    a = system.synthesise(x, given, system.handled)
    for b in (system.synthesise(z, given, system.handled) for z in (hidden, {"us": x["us"]})):
        assert all(torch.equal(a[m], b[m]) for m in system.handled)


def test_what_is_given_is_read(name):
    system = make(name)
    x, observed, _ = batch()
    given = given_of(system, observed)[:, :] & torch.tensor([True, True, False, False])
    a = system.synthesise(x, given, ["us"])["us"]
    b = system.synthesise({**x, "t2": -x["t2"]}, given, ["us"])["us"]
    changed = (a - b).flatten(1).abs().amax(dim=1) > 0
    assert changed.tolist() == given[:, 1].tolist()


def test_rows_have_their_own_pattern(name):
    system = make(name)
    x, observed, _ = batch()
    given = given_of(system, observed)
    together = system.synthesise(x, given, system.handled)
    for row in range(5):
        alone = {m: v[[row]] for m, v in x.items()}
        images = system.synthesise(alone, given[[row]], system.handled)
        for m in system.handled:
            torch.testing.assert_close(images[m], together[m][[row]], rtol=1e-4, atol=1e-5)


def test_loss_is_one_number_a_row_and_reaches_all_parameters(name):
    system = make(name)
    reached = set()
    for seed in range(4):  # MoPoE decodes from a subset, which may leave a head out
        torch.manual_seed(seed)
        loss = system.loss(batch(), 0.5)
        assert loss.shape == (5,)
        loss.sum().backward()
        reached |= {
            k
            for k, p in system.network.named_parameters()
            if p.grad is not None and p.grad.abs().max() > 0
        }
    expected = {k for k, p in system.network.named_parameters() if p.requires_grad}
    assert expected - reached == set()


def test_what_is_out_of_view_teaches_nothing(name):
    system = make(name)
    shown = []
    networks = [system.network]
    if isinstance(system.network, MultimodalVAE):
        networks = [decoder.network for decoder in system.network.decoders.values()]
    for network in networks:
        network.register_forward_hook(lambda network, inputs, image: shown.append(image))
    torch.manual_seed(0)
    loss = system.loss(batch(), 0.5)
    gradients = torch.autograd.grad(loss.sum(), shown, allow_unused=True)
    gradients = torch.cat([g.flatten(0, 1) for g in gradients if g is not None])
    assert torch.equal(gradients[..., :5], torch.zeros_like(gradients[..., :5]))
    assert gradients[..., 5:].abs().max() > 0


def test_a_batch_of_one_trains(name):
    system = make(name)
    x, observed, fov = batch(rows=1)
    loss = system.loss((x, observed, fov), 0.0)
    assert loss.shape == (1,)
    assert loss.isfinite().all()
    loss.sum().backward()


def test_rows_of_which_nothing_can_be_learnt_cost_nothing(name):
    system = make(name)
    x, observed, fov = batch(missing=torch.nan)
    loss = system.loss((x, torch.zeros_like(observed), fov), 0.5)
    assert torch.equal(loss, torch.zeros(5))


def test_a_few_steps_on_one_batch_lower_the_loss(name):
    system = make(name)
    data = batch()
    optimizer = torch.optim.Adam(system.network.parameters(), lr=system.lr)

    def measure():
        total = 0.0
        for seed in range(3):
            torch.manual_seed(seed)
            with torch.no_grad():
                total += system.loss(data, 0.5).mean().item() / 3
        return total

    before = measure()
    for step in range(12):
        torch.manual_seed(100 + step)
        optimizer.zero_grad()
        system.loss(data, 0.5).mean().backward()
        nn.utils.clip_grad_norm_(system.network.parameters(), 1.0)
        optimizer.step()
    after = measure()
    assert after < before - 0.05 * abs(before)


def test_bad_input_is_named(name):
    system = make(name)
    x, observed, fov = batch()
    with pytest.raises(ValueError, match=r"observed|given"):
        system.synthesise(x, observed.float(), system.handled)
    with pytest.raises(ValueError, match=r"us"):
        system.loss(({**x, "us": torch.full_like(x["us"], torch.nan)}, observed, fov), 0.5)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_discriminators_learn_from_what_the_system_just_showed(name):
    system = make(name)
    data = batch()
    assert system.adversary is not None
    critic = system.adversary.network
    mine = set(map(id, system.network.parameters()))
    assert not any(id(p) in mine for p in critic.parameters())
    system.loss(data, 0.5)
    optimizer = system.adversary.build(critic.parameters())
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = system.adversary.loss(critic, data, 0.5)
        assert loss.shape == (5,)
        assert loss[4] == 0  # of one modality, nothing is hidden
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.mean().item())
    assert losses[-1] < losses[0]
    assert all(p.grad is None for p in system.network.parameters())


def test_the_regressor_tells_zeros_from_what_is_missing():
    system = make("unet")
    x, _, _ = batch()
    x["t2"] = torch.zeros_like(x["t2"])
    with_zeros, without = (torch.tensor([[True, t2, False, False]] * 5) for t2 in (True, False))
    a, b = (system.synthesise(x, given, ["us"])["us"] for given in (with_zeros, without))
    assert (a - b).abs().max() > 1e-3


class Constant(nn.Module):
    """A discriminator that scores everything alike."""

    def __init__(self, score):
        super().__init__()
        self.score = score

    def forward(self, x):
        return torch.full((len(x), 4, 2, 2), self.score)


def test_the_discriminator_of_mmgan_tells_modalities_apart():
    system = make("mmgan")
    data = batch(missing=torch.nan)
    system.loss(data, 0.0)
    loss = system.adversary.loss(Constant(0.75), data, 0.0)
    # at the beginning one modality is hidden: n - 1 of n scores should be 1, and one 0
    expected = [(0.75**2 + (n + n - 1) * 0.25**2) / (2 * n) for n in (2, 4, 2, 3)]
    assert loss.tolist() == pytest.approx([*expected, 0.0])


def test_the_discriminator_of_resvit_judges_rows_with_something_hidden():
    system = make("resvit")
    data = batch(missing=torch.nan)
    system.loss(data, 0.0)
    loss = system.adversary.loss(Constant(0.75), data, 0.0)
    assert loss.tolist() == pytest.approx([(0.25**2 + 0.75**2) / 2] * 4 + [0.0])


def test_diffusion_keeps_what_is_given_clean_at_every_step():
    system = make("m2dn")
    x, observed, _ = batch(missing=torch.nan)
    calls = []
    system.network.register_forward_pre_hook(lambda network, inputs: calls.append(inputs))
    system.synthesise(x, observed, ["us"])
    assert [int(time[0]) for _, time, _ in calls] == sorted({int(t[0]) for _, t, _ in calls})[::-1]
    assert (len(calls), int(calls[0][1][0]), int(calls[-1][1][0])) == (10, TIMES - 1, 0)
    clean = stack(x, observed, MODALITIES)
    for images, _, missing in calls:
        assert torch.equal(images[observed], clean[observed])
        assert torch.equal(missing, ~observed)
    noise = calls[0][0][~observed]
    assert noise.std() == pytest.approx(1, abs=0.05)


def test_a_step_of_diffusion_takes_noise_away_and_nothing_else():
    truth, noise = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    now, then = torch.tensor(0.3), torch.tensor(0.9)
    state = _mix(truth, noise, now.expand(2, 3))
    expected = _mix(truth, noise, then.expand(2, 3))
    torch.testing.assert_close(_step(state, truth, now, then), expected)


def test_published_sizes():
    """The figures that the published code has, counted from its classes."""
    count = lambda network: sum(p.numel() for p in network.parameters())
    with torch.device("meta"):  # no memory, no time
        mmgan = build("mmgan", MODALITIES, 256, full=True)
        mmhvae = build("mmhvae", MODALITIES, 192, full=True)
        resvit = build("resvit", MODALITIES, 192, full=True)
    assert count(mmgan.network) == 54_407_172
    assert count(mmgan.adversary.network) == 2_794_432
    assert count(mmhvae.network) == 13_774_770
    assert count(resvit.network) == pytest.approx(123.3e6, rel=1e-3)


def test_the_forerunner_handles_two_modalities_and_says_so():
    system = make("mhvae")
    x, observed, fov = batch(missing=torch.nan)
    assert system.handled == ["us", "t2"]
    loss = system.loss((x, observed, fov), 0.5)
    assert (loss != 0).tolist() == [True, True, False, True, False]  # who has both
    with pytest.raises(ValueError, match=r"'given' should be among us, t2, but holds us.*cet1"):
        system.synthesise(x, observed, ["t2"])


def test_unknown_systems_are_named():
    with pytest.raises(ValueError, match=r"unet, mopoe.*'pix2pix'"):
        build("pix2pix", MODALITIES, SIZE)


@pytest.mark.parametrize("full", [False, True])
def test_sizes_that_cannot_be_halved_are_refused(name, full):
    if name != "mopoe":  # stops halving at any size
        with pytest.raises(ValueError, match=r"'size'"):
            build(name, MODALITIES, 33 if full else 34, full=full)


def test_curriculum_hides_at_most_so_many():
    torch.manual_seed(0)
    observed = torch.ones(300, 4, dtype=torch.bool)
    observed[:100, 3] = False
    given = torch.eye(4, dtype=torch.bool)[:3].repeat(100, 1)
    for most in (1, 2, 3):
        kept = _give_back(observed, given, most)
        assert (kept & given == given).all()
        assert (kept <= observed).all()
        hidden = (observed & ~kept).sum(dim=1)
        assert torch.equal(hidden, (observed & ~given).sum(dim=1).clamp(max=most))
    share = (observed & ~_give_back(observed, given, 1)).float().mean(dim=0)
    assert (share > 0.1).all()  # any may be hidden


def test_errors_are_averaged_over_what_counts_in_view():
    truth, images = torch.zeros(2, 2, 4, 4), torch.ones(2, 2, 4, 4)
    images[0, 1] = 3
    fov = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    fov[..., 0] = True
    images[..., 1:] = 100
    scored = torch.tensor([[True, True], [False, False]])
    assert mean_error(images, truth, scored, fov).tolist() == [2.0, 0.0]


def test_what_is_not_hidden_is_pasted_back():
    real, images = torch.full((1, 2, 2, 2), 0.5), torch.full((1, 2, 2, 2), 0.1)
    fov = torch.tensor([[[[True, False], [True, False]]]])
    fake, real = paste(images, real, torch.tensor([[True, False]]), fov)
    assert fake[0, 0, 0].tolist() == pytest.approx([0.1, -1])
    assert fake[0, 1, 0].tolist() == pytest.approx([0.5, -1])
    assert real[0, :, 0].tolist() == [[0.5, -1]] * 2


def test_stack_fills_and_checks():
    x = {"us": torch.full((1, 1, 2, 2), torch.nan), "t2": torch.ones(1, 1, 2, 2)}
    out = stack(x, torch.tensor([[False, True, False, False]]), MODALITIES, fill=0.25)
    assert out[0, :, 0, 0].tolist() == [0.25, 1, 0.25, 0.25]
    with pytest.raises(ValueError, match=r"'flair', which the mask takes"):
        stack(x, torch.tensor([[False, True, False, True]]), MODALITIES)
