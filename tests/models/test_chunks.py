"""Rows are worked on in chunks that fit, each once and in order."""

import pytest
import torch
from example_models import NAMES, batch, flat, make, noise_for
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mmpoe
from mmpoe.likelihoods import Normal
from mmpoe.models import in_chunks, is_out_of_memory


@pytest.mark.fault(40, simulated=True)
@given(st.integers(0, 50), st.none() | st.integers(1, 60), st.integers(1, 60))
def test_rows_that_do_not_fit_are_halved(rows, size, room):
    tried = []

    def work(part):
        tried.append(part.stop - part.start)
        if part.stop - part.start > room:
            raise torch.OutOfMemoryError("no room")
        return list(range(50))[part]

    found = in_chunks(work, rows, size)
    assert sum(found, []) == list(range(rows))  # noqa: RUF017
    assert all(1 <= len(part) <= room for part in found)
    largest = [max(tried[i:], default=0) for i in range(len(tried))]
    assert largest == sorted(largest, reverse=True)
    assert len(tried) - len(found) <= 6  # what did not fit is not tried again
    if rows > room and (size is None or size > room):
        assert max(map(len, found)) > room / 2 - 1


@pytest.mark.fault(40, simulated=True)
def test_a_model_predicts_the_same_in_chunks():
    model, x = make(flat).eval(), batch()
    noise = noise_for(model)

    def predict(rows):
        if rows.stop - rows.start > 3:
            raise torch.OutOfMemoryError("no room")
        part = {m: values[rows] for m, values in x.items()}
        return model(part, NAMES[:1], noise=[n[rows] for n in noise]).likelihoods["us"].mean

    whole = model(x, NAMES[:1], noise=noise).likelihoods["us"].mean
    parts = in_chunks(predict, len(whole))
    assert len(parts) > 1
    torch.testing.assert_close(torch.cat(parts), whole)


def test_one_row_that_does_not_fit_is_an_error():
    def work(rows):
        if rows.start == 2:
            raise torch.OutOfMemoryError("no room for row 2")
        raise torch.OutOfMemoryError("no room") if rows.stop - rows.start > 1 else KeyError

    with pytest.raises(KeyError):  # other errors are passed on
        in_chunks(work, 4)
    with pytest.raises(torch.OutOfMemoryError, match=r"no room for row 2"):
        in_chunks(lambda rows: work(slice(2, 3)), 4)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"'rows' should be at least 0, but is -1"):
        in_chunks(list, -1)
    with pytest.raises(ValueError, match=r"'size' should be at least 1 or None, but is 0"):
        in_chunks(list, 1, 0)


@pytest.mark.fault(71, simulated=True)
@pytest.mark.parametrize("part", ["encoders", "decoders"])
def test_networks_without_memory_are_not_blamed_for_their_inputs(part):
    """Their error stays one that `in_chunks` answers."""
    vae = mmpoe.MVAE({"a": nn.Linear(3, 4)}, {"a": Normal(nn.Linear(2, 3))})

    def run_out(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    getattr(vae, part)["a"].register_forward_hook(run_out)
    with pytest.raises(RuntimeError, match=r"^\[enforce fail\]") as caught:
        vae.predict({"a": torch.zeros(2, 3)}, targets=["a"])
    assert is_out_of_memory(caught.value)
