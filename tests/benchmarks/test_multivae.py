"""MultiVae, another library, and ours agree: same networks, same data, same draws."""

from copy import deepcopy
from importlib import import_module

import pytest
import torch

import mmpoe
from benchmarks import _multivae as peer
from benchmarks import _networks as ours
from mmpoe.missing import pack
from mmpoe.objectives import log_marginal, mixture_elbo

pytestmark = pytest.mark.skipif(
    not peer.importable(), reason="needs multivae: pip install --group bench"
)

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32; it adds 1e-8 to variances, and we do not


def flat(modalities=3):
    torch.manual_seed(0)
    networks = ours.FlatNetworks(modalities, shape=(1, 3, 4), latent=5, hidden=16)
    with torch.no_grad():  # experts that disagree, and differ in how sure they are
        for encoder in networks.encoders.values():
            encoder.loc.weight.mul_(16)
            encoder.log_variance.weight.mul_(8)
    return networks


def ladder(modalities=3):
    torch.manual_seed(0)
    return ours.LadderNetworks(modalities, latent=4, width=4)


def subset(names, size, members):
    return torch.tensor([m in members for m in names]).expand(size, -1)


@pytest.mark.parametrize("modalities", [2, 3, 5])
def test_subset_posteriors_of_the_mixture_of_products(modalities):
    networks = flat(modalities)
    x, observed = ours.draw_batch(networks, 16)
    peers = peer.mopoe(networks)
    theirs = peers.inference(peer.dataset(x, observed))

    members = peer.members_of(peers)  # (S, M)
    inside = (members[:, None] & ~observed).sum(dim=-1) == 0  # (S, B), available
    given, rows, _ = pack(members[:, None] & inside[..., None], torch.ones(len(members), 16))
    model = ours.mopoe(networks)
    q = model.infer(model.encode(x, observed), given, rows=rows).posteriors[0]
    which = (given[:, None] == members).all(dim=-1).long().argmax(dim=1)
    assert len(rows) == inside.sum() == theirs["weights"].bool().sum()
    torch.testing.assert_close(q.loc, theirs["mus"][which, rows], **CLOSE)
    torch.testing.assert_close(2 * q.log_scale, theirs["logvars"][which, rows], **CLOSE)


@pytest.mark.parametrize("modalities", [2, 3, 5])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_mixture_of_products_has_the_same_loss_and_gradients(modalities, missing):
    networks = flat(modalities)
    x, observed = ours.draw_batch(networks, 16, missing)
    parity = peer.mopoe_parity(networks, x, observed)
    assert parity.losses[0] == pytest.approx(parity.losses[1], rel=1e-5)
    assert parity.divergences[0] == pytest.approx(parity.divergences[1], rel=1e-5)
    assert parity.divergences[0] > 1  # experts say something
    assert parity.gradients < 1e-5


@pytest.mark.parametrize("members", [["m0"], ["m2"], ["m0", "m1"], ["m0", "m1", "m2"]])
def test_bound_and_gradients_of_a_product_of_experts(members):
    networks, copied = flat(), deepcopy(flat())
    x, observed = ours.draw_batch(networks, 16, 0.5)
    given = observed & subset(networks.names, 16, members)
    seen = given.any(dim=1)
    noise = torch.randn(16, networks.latent, generator=torch.Generator().manual_seed(1))

    output = ours.mvae(networks)(x, given, noise=[noise])
    loss = -mmpoe.elbo(output, x, given)[seen].mean()

    peers = peer.mvae(copied)
    with peer.drawing(peers, lambda mu: noise[seen]):
        batch, _ = peers._filter_inputs_with_masks(peer.dataset(x, observed), members)
        theirs, divergence, *_ = peers._compute_elbo_subset(batch, members, 1.0)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert output.kl[0][seen].mean().item() == pytest.approx(divergence.item(), rel=1e-5)
    assert gradients_differ(loss, networks, theirs, copied) < 1e-5


@pytest.mark.parametrize("members", [["m0"], ["m1", "m2"], ["m0", "m1", "m2"]])
def test_latents_and_divergences_of_a_hierarchy(members):
    networks = ladder()
    x, _ = ours.draw_batch(networks, 6, 0.0)
    given = subset(networks.names, 6, members)
    output = ours.mhvae(networks)(x, given, temperature=0)

    peers = peer.mhvae(networks)
    tops, skips = peers.modality_encode(x)
    z, kl = peers.subset_encode(tops, skips, members, peer.dataset(x), return_mean=True)
    for level, name in enumerate("321"):  # coarse to fine; theirs are sums over the batch
        torch.testing.assert_close(output.z[level], z[f"z_{name}"], **CLOSE)
        theirs = kl[f"kl_{name}"].item()
        assert output.kl[level].sum().item() == pytest.approx(theirs, rel=1e-5)
        assert theirs > 0


def test_hierarchy_has_the_same_loss_and_gradients():
    networks, copied = ladder(), deepcopy(ladder())
    x, observed = ours.draw_batch(networks, 6, 0.0)
    loss = -zero_temperature_bound(ours.mhvae(networks), x, observed).mean()

    peers = peer.mhvae(copied)
    with peer.drawing(peers, torch.zeros_like):
        theirs = peers(peer.dataset(x)).loss / 6
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert gradients_differ(loss, networks, theirs, copied) < 1e-5


def test_its_incomplete_batches_are_ours():
    networks = flat()
    x, observed = ours.draw_batch(networks, 16)
    samples = mmpoe.missing.from_multivae(peer.dataset(x, observed))
    again, seen = ours.mopoe(networks).collate(samples)
    assert torch.equal(seen, observed)
    for column, m in enumerate(networks.names):
        assert torch.equal(again[m][observed[:, column]], x[m][observed[:, column]])


@pytest.mark.parametrize("kind", ["mvae", "mopoe", "mhvae"])
def test_what_an_incomplete_row_can_be_asked(kind, monkeypatch):
    """The table of the documentation: what it refuses, and we answer."""
    # PyTorch's compiler turns checks of distributions off, for good, where a test has used it
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    networks = ladder() if kind == "mhvae" else flat()
    x, observed = ours.draw_batch(networks, 4)
    observed[:2] = torch.tensor([[True, False, True], [True, True, False]])
    seen = observed.T[..., None, None, None]
    nan = {m: torch.where(s, x[m], torch.nan) for m, s in zip(networks.names, seen, strict=True)}
    empty = observed & (torch.arange(4) > 0)[:, None]
    model, peers = getattr(ours, kind)(networks), getattr(peer, kind)(networks)

    with pytest.raises(ValueError, match="Normal"):  # not a valid value
        peers(peer.dataset(nan, observed))
    assert mixture_elbo(model, nan, observed).isfinite().all()

    with pytest.raises(AttributeError, match="some samples are not available"):
        peers.encode(peer.dataset(x, observed))
    assert model(nan, observed).z[-1].isfinite().all()

    with pytest.raises((AttributeError, NotImplementedError)):
        peers.compute_joint_nll(peer.dataset(x, observed), K=2)
    assert log_marginal(model, nan, observed, samples=2).isfinite().all()

    if kind == "mopoe":
        with pytest.raises(ValueError, match="Simplex"):
            peers(peer.dataset(x, empty))
    assert mixture_elbo(model, nan, empty)[0] == 0


@pytest.mark.parametrize("copies", [2, 4])
def test_its_hierarchy_sums_over_the_batch(copies):
    networks = ladder()
    x, _ = ours.draw_batch(networks, 4, 0.0)
    peers = peer.mhvae(networks)
    with peer.drawing(peers, torch.zeros_like):
        once = peers(peer.dataset(x)).loss
        several = peers(peer.dataset({m: v.repeat(copies, 1, 1, 1) for m, v in x.items()})).loss
    assert several.item() == pytest.approx(copies * once.item(), rel=1e-5)


def test_drawing_puts_its_own_sampler_back():
    peers = peer.mvae(flat())
    module = import_module(type(peers).__module__)
    own = module.rsample_from_gaussian
    with peer.drawing(peers, torch.zeros_like):
        assert module.rsample_from_gaussian is not own
    assert module.rsample_from_gaussian is own


def zero_temperature_bound(model, x, observed):
    """The mixture bound at posterior means."""
    infer = model.infer
    model.infer = lambda *args, **options: infer(*args, **options, temperature=0)
    return mixture_elbo(model, x, observed)


def gradients_differ(loss, networks, theirs, copied):
    def gradients(value, module):
        return torch.autograd.grad(value, list(module.parameters()), materialize_grads=True)

    return peer.relative_difference(gradients(loss, networks), gradients(theirs, copied))
