"""Real images are remembered, and drawn from."""

import math

import pytest
import torch
from example_models import NAMES, OBSERVED, batch

from mmpoe.adversarial import ImageBank


def images(*values, fill=0.0):
    x = {"us": torch.full((len(values), 2, 2), fill), "t2": torch.zeros(len(values), 3)}
    for row, value in enumerate(values):
        x["us"][row] = value
    return x


def seen(*us):
    return torch.tensor([[u, False] for u in us])


def test_bank_keeps_the_last_images():
    bank = ImageBank(["us", "t2"], size=3)
    nan = float("nan")
    bank.push(images(1, nan, 2), seen(True, False, True))
    assert bank.images["us"][:, 0, 0].tolist() == [1, 2]
    bank.push(images(nan, nan), seen(False, False))
    bank.push(images(3, 4), seen(True, True))
    assert bank.images["us"][:, 0, 0].tolist() == [2, 3, 4]
    bank.push(images(5, 6, 7, 8), seen(True, True, True, True))
    assert bank.images["us"][:, 0, 0].tolist() == [6, 7, 8]
    assert list(bank.images) == ["us"]  # the other was never observed
    assert bank.images["us"].untyped_storage().nbytes() == 3 * 4 * 4


@pytest.mark.parametrize("filler", [7.0, math.nan, math.inf, -math.inf])
def test_fillers_never_enter_the_bank(filler):
    bank, other = ImageBank(NAMES, size=5), ImageBank(NAMES, size=5)
    bank.push(batch(filler), OBSERVED)
    other.push(batch(), OBSERVED)
    assert list(bank.images) == NAMES
    for m in NAMES:
        assert torch.equal(bank.images[m], other.images[m])
    x = batch(filler)
    del x["us"]  # as it was observed nowhere
    bank.push(x, OBSERVED & torch.tensor([False, True, True]))


def test_bank_holds_copies():
    bank, x = ImageBank(["us", "t2"]), images(1, 2)
    x["us"].requires_grad_()
    bank.push(x, seen(True, True))
    with torch.no_grad():
        x["us"].zero_()
    assert bank.images["us"].sum() == 12
    assert not bank.images["us"].requires_grad
    bank.draw("us", 2).zero_()
    state = bank.state_dict()
    state["images.us"].zero_()
    assert bank.images["us"].sum() == 12


def test_bank_remembers_zero_outside_the_view():
    bank, x = ImageBank(["us", "t2"]), images(1, 2)
    x["us"][:, 0, 1] = math.nan
    inside = torch.tensor([[True, False], [True, True]])
    with pytest.raises(ValueError, match=r"'us' holds NaN or infinity in rows \[0, 1\]"):
        bank.push(x, seen(True, True))
    with pytest.raises(ValueError, match=r"'valid' .* 'us', \(2, 2, 2\), but has shape \(3,\)"):
        bank.push(x, seen(True, True), valid={"us": inside.new_ones(3)})
    assert bank.images == {}
    bank.push(x, seen(False, True), valid={"us": inside})
    assert bank.images["us"].tolist() == [[[2, 0], [2, 2]]]


def test_bank_draws_evenly_and_from_its_own_generator():
    bank = ImageBank(["us", "t2"], size=4, seed=5)
    bank.push(images(0, 1, 2, 3), seen(*[True] * 4))
    state = torch.get_rng_state()
    drawn = bank.draw("us", 4000)
    assert torch.equal(torch.get_rng_state(), state)
    counts = drawn[:, 0, 0].long().bincount()
    assert ((counts - 1000).abs() < 4 * (4000 * 3 / 16) ** 0.5).all()  # 4 standard deviations
    twin = ImageBank(["us", "t2"], size=4, seed=5)
    twin.push(images(0, 1, 2, 3), seen(*[True] * 4))
    assert torch.equal(twin.draw("us", 4000), drawn)
    assert not torch.equal(bank.draw("us", 4000), drawn)


def test_bank_resumes_bit_exactly(tmp_path):
    names = ["us", "t2.space", "generator", "images.us"]  # any names
    bank = ImageBank(names, size=3, seed=1)
    x = {m: torch.randn(5, 2) for m in names[:3]}
    observed = torch.tensor([[True, b % 2 == 0, True, False] for b in range(5)])
    bank.push(x, observed)
    bank.draw("us", 7)
    assert all(isinstance(value, torch.Tensor) for value in bank.state_dict().values())
    torch.save(bank.state_dict(), tmp_path / "bank.pt")
    twin = ImageBank(names, size=3, seed=99)
    twin.push({"us": torch.zeros(1, 2)}, torch.tensor([[True, False, False, False]]))
    twin.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    for _ in range(2):
        for m in names[:3]:
            assert torch.equal(bank.images[m], twin.images[m])
            assert torch.equal(bank.draw(m, 6), twin.draw(m, 6))
        for one in (bank, twin):
            one.push(x, observed)
    assert "images.us" not in twin.images


def test_bad_banks_are_named():
    with pytest.raises(ValueError, match=r"'size' should be at least 1, but is 0"):
        ImageBank(["us"], size=0)
    with pytest.raises(ValueError, match=r"'modalities' should be a list of distinct names"):
        ImageBank(["us", "us"])
    bank = ImageBank(["us", "t2"], size=2)
    with pytest.raises(ValueError, match=r"'modality' .* pushed, none so far, but is 'us'"):
        bank.draw("us", 1)
    with pytest.raises(ValueError, match=r"'modality' should hold modalities among us, t2"):
        bank.draw("ut", 1)
    with pytest.raises(ValueError, match=r"'x' .* \(2\) of 'us', .* but it is absent"):
        bank.push({"t2": torch.zeros(2, 3)}, seen(True, False))
    with pytest.raises(ValueError, match=r"'x' .* \(2\) of 'us', .* has shape \(3, 2, 2\)"):
        bank.push(images(1, 2, 3), seen(True, False))
    with pytest.raises(ValueError, match=r"'observed' .* shape \(B, 2\), .* \(3, 3\)"):
        bank.push(images(1, 2, 3), torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"'x' should hold modalities .* but holds 'ut'"):
        bank.push({"ut": torch.zeros(1)}, seen(True))
    bank.push(images(1), seen(True))
    with pytest.raises(ValueError, match=r"'us' as before, with shape \(2, 2\) .* has \(3,\)"):
        bank.push({"us": torch.zeros(1, 3)}, seen(True))
    with pytest.raises(ValueError, match=r"torch.float32, but has \(2, 2\) and torch.float64"):
        bank.push({"us": torch.zeros(1, 2, 2).double()}, seen(True))
    state = bank.state_dict()
    with pytest.raises(ValueError, match=r"'state' should hold 'generator', but holds images.us"):
        bank.load_state_dict({"images.us": state["images.us"]})
    with pytest.raises(ValueError, match=r"'state' should hold modalities among t1, but .* 'us'"):
        ImageBank(["t1"]).load_state_dict(state)
    state["images.us"] = torch.zeros(3, 2, 2)
    with pytest.raises(ValueError, match=r"'state' should hold 1 to 2 images .* 3 of 'us'"):
        bank.load_state_dict(state)
