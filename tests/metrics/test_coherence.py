"""Coherence against its definition, row by row."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpoe.metrics import conditional_coherence, joint_coherence

NAN = math.nan


@st.composite
def batches(draw):
    rows, modalities = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    cell = st.lists(st.integers(0, 2), min_size=rows, max_size=rows)
    predictions = {f"m{m}": torch.tensor(draw(cell)).long() for m in range(modalities)}
    flags = st.lists(st.booleans(), min_size=rows * modalities, max_size=rows * modalities)
    generated = torch.tensor(draw(flags), dtype=torch.bool).reshape(rows, modalities)
    return predictions, torch.tensor(draw(cell)).long(), generated


@given(batches())
def test_coherence_is_its_definition(batch):
    predictions, labels, generated = batch
    conditional = conditional_coherence(predictions, labels, generated=generated)
    joint = joint_coherence(predictions, generated=generated)
    assert conditional.shape == generated.shape
    assert joint.shape == labels.shape
    for b in range(len(labels)):
        shown = [
            p[b].item() if g else None
            for p, g in zip(predictions.values(), generated[b], strict=True)
        ]
        expected = [NAN if s is None else float(s == labels[b].item()) for s in shown]
        assert conditional[b].tolist() == pytest.approx(expected, nan_ok=True)
        shown = [s for s in shown if s is not None]
        expected = NAN if len(shown) < 2 else float(len(set(shown)) == 1)
        assert joint[b].item() == pytest.approx(expected, nan_ok=True)


@given(batches())
def test_what_was_not_generated_does_not_count(batch):
    predictions, labels, generated = batch
    other = {
        m: torch.where(generated[:, i], p, -7) for i, (m, p) in enumerate(predictions.items())
    }
    for score in (
        lambda p: conditional_coherence(p, labels, generated=generated),
        lambda p: joint_coherence(p, generated=generated),
    ):
        torch.testing.assert_close(
            score(other), score(predictions), rtol=0, atol=0, equal_nan=True
        )


def test_shares_per_target_and_their_mean():
    predictions = {"a": torch.tensor([0, 1, 2, 2]), "b": torch.tensor([0, 1, 1, 0])}
    labels = torch.tensor([0, 1, 2, 0])
    generated = torch.tensor([[True, True], [True, True], [True, True], [False, True]])
    found = conditional_coherence(predictions, labels, generated=generated)
    torch.testing.assert_close(found.nanmean(dim=0), torch.tensor([1.0, 0.75]))
    torch.testing.assert_close(found.nanmean(), torch.tensor(6 / 7))
    assert joint_coherence(predictions).tolist() == [1, 1, 0, 0]
    assert joint_coherence(predictions, generated=generated).nanmean().item() == pytest.approx(
        2 / 3
    )


def test_chance():
    generator = torch.Generator().manual_seed(0)
    predictions = {m: torch.randint(4, (20_000,), generator=generator) for m in "abc"}
    found = joint_coherence(predictions).mean().item()
    assert found == pytest.approx(1 / 16, abs=4 * math.sqrt(1 / 16 / 20_000))


def test_bad_input_is_named():
    a, b = torch.tensor([0, 1]), torch.tensor([0, 1])
    mask = torch.ones(2, 2, dtype=torch.bool)
    for score in (lambda p, **k: conditional_coherence(p, b, **k), joint_coherence):
        with pytest.raises(ValueError, match=r"'predictions' should hold at least one modality"):
            score({})
        with pytest.raises(ValueError, match=r"'predictions' .* \(2,\), but 'b' has .*float32"):
            score({"a": a, "b": b.float()})
        with pytest.raises(ValueError, match=r"'predictions' .* 'b' has .* shape \(2, 1\)"):
            score({"a": a, "b": b[:, None]})
        with pytest.raises(ValueError, match=r"'predictions' .* 'a' has .* shape \(\)"):
            score({"a": a[0], "b": b})
        with pytest.raises(ValueError, match=r"'generated' should be boolean .*int64"):
            score({"a": a, "b": b}, generated=mask.long())
        with pytest.raises(ValueError, match=r"'generated' .* \(2, 2\), .* shape \(2, 1\)"):
            score({"a": a, "b": b}, generated=mask[:, :1])
    with pytest.raises(ValueError, match=r"'labels' should hold integer labels .* shape \(3,\)"):
        conditional_coherence({"a": a, "b": b}, torch.tensor([0, 1, 2]))
