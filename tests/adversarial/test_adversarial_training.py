"""Models and discriminators learn together, to the modes, and resume to the same bits."""

import math
import re
from pathlib import Path

import pytest
import torch
from adversaries import discriminators
from example_models import NAMES, OBSERVED, batch, flat, make

import mmpoe
from mmpoe import likelihoods
from mmpoe.adversarial import (
    ImageBank,
    adversarial_loss,
    discriminator_loss,
    r1_penalty,
    scored_targets,
)
from mmpoe.nn import MLP, ModalityDict

pytestmark = pytest.mark.slow


class Training:
    """All that a run of training has a state of."""

    def __init__(self):
        self.model, self.networks = make(flat), ModalityDict(discriminators())
        self.bank = ImageBank(NAMES, size=4)
        self.optimizers = [torch.optim.Adam(of.parameters()) for of in (self.model, self.networks)]

    def parts(self):
        return [self.model, self.networks, self.bank, *self.optimizers]

    def run(self, steps):
        for step in steps:
            observed = OBSERVED & (torch.arange(3) != step % 3)
            x = batch(math.nan, observed, seed=step)
            self.bank.push(x, observed)
            output, scored = self.model(x, observed), scored_targets(observed, observed)
            loss = adversarial_loss(output, self.networks, scored)
            loss = loss - mmpoe.elbo(output, x, observed)
            discriminators_loss = discriminator_loss(
                output, self.networks, x, observed, scored, kind="wgan_gp", bank=self.bank
            )
            for of, optimizer in zip((loss, discriminators_loss), self.optimizers, strict=True):
                optimizer.zero_grad()
                of.mean().backward()
                optimizer.step()


def test_training_resumes_bit_exactly(tmp_path):
    whole = Training()
    torch.manual_seed(0)
    whole.run(range(4))
    states = [part.state_dict() for part in whole.parts()]
    torch.save([states, torch.get_rng_state()], tmp_path / "state.pt")
    whole.run(range(4, 8))

    resumed = Training()
    states, rng_state = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, state in zip(resumed.parts(), states, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(rng_state)
    resumed.run(range(4, 8))
    for part, other in zip(whole.parts()[:3], resumed.parts()[:3], strict=True):
        for name, value in part.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


def test_documentation_runs():
    page = Path(__file__).parents[2] / "docs" / "api" / "adversarial.md"
    names = {"epoch": 900, "pixels": 32**2}
    torch.manual_seed(0)
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(code, page, "exec"), names)
    assert names["loss"].shape == (4,)
    assert names["loss"].isfinite().all()
    assert names["of_model"].shape == names["of_discriminators"].shape == (4, 2)


# what it is for


def r1(discriminator, real, fake):
    return 0.1 * r1_penalty(discriminator, real)


def distance_to_modes(weight, seed):
    """Trains to show a point that is (1, 1) or (-1, -1), given noise. Every other batch lacks it.

    Returns the median distance of what is shown to the closer of the two.
    """
    torch.manual_seed(seed)
    model = mmpoe.MVAE(
        {"noise": MLP(1, 4, hidden=[16]), "point": MLP(2, 4, hidden=[16])},
        {"noise": likelihoods.Normal(MLP(2, 1, hidden=[16])),
         "point": likelihoods.Normal(MLP(2, 2, hidden=[32, 32]))},
    )  # fmt: skip
    networks, bank = {"point": MLP(2, 1, hidden=[32, 32])}, ImageBank(model.modalities)
    options = {"lr": 3e-3, "betas": (0.5, 0.9)}
    optimizer = torch.optim.Adam(model.parameters(), **options)
    discriminator_optimizer = torch.optim.Adam(networks["point"].parameters(), **options)
    for step in range(300):
        lacking = step % 2 == 1
        x = {
            "noise": torch.randn(32, 1),
            "point": torch.randint(2, (32, 1)).expand(32, 2) * 2.0 - 1,
        }
        x["point"] = torch.full((32, 2), math.nan) if lacking else x["point"]
        observed = torch.tensor([True, not lacking]).expand(32, 2)
        bank.push(x, observed)
        given = observed & torch.tensor([True, False])
        output, scored = model(x, given), scored_targets(given, observed)

        loss = weight * adversarial_loss(output, networks, scored) - mmpoe.elbo(
            output, x, observed
        )
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()

        if weight == 0:
            continue
        loss = discriminator_loss(output, networks, x, observed, scored, bank=bank, penalty=r1)
        discriminator_optimizer.zero_grad()
        loss.mean().backward()
        discriminator_optimizer.step()
    shown = model.predict({"noise": torch.randn(500, 1)}, targets=["point"])["point"].mean
    return (shown.abs() - 1).norm(dim=1).median().item()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_shown_moves_from_the_mean_to_the_modes(seed):
    assert distance_to_modes(0.0, seed) > 1.25  # the mean of both is at 1.41
    assert distance_to_modes(30.0, seed) < 0.6
