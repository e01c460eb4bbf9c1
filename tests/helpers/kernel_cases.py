"""Inputs of the fused operation, and how far a backend is from PyTorch in float64 on them."""

import torch
from hypothesis import strategies as st

from mmpoe.kernels import _launch, _reference
from mmpoe.kernels._arguments import Inputs, Outputs

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def make(
    seed=0,
    experts=4,
    subsets=1,
    rows=3,
    event=(4, 5),
    dtype=torch.float32,
    spread=1.0,
    prior=True,
    noise="tensor",
    clamp=0.0,
    power=2,
    common=False,
    layout="dense",
    filler=torch.nan,
    share=0.6,
    order=None,
    prior_in="always",
):
    """Draws inputs; what is given in no subset holds the filler.

    Each expert is given with the probability `share`. With an order of their samples, "ascending"
    or "any", the subsets are pairs, as many as with `subsets` but not the same for each sample.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=generator)).to(dtype)

    given = torch.rand(subsets, rows, experts, generator=generator) < share
    of_pairs = None
    if order is not None:
        of_pairs = torch.randint(rows, (subsets * rows,), generator=generator)
        of_pairs = of_pairs.sort().values if order == "ascending" else of_pairs
        given = given.flatten(0, 1)
    loc, log_scale = [], []
    for m in range(experts):
        pair = [draw(rows, *event), draw(rows, *event, scale=spread)]
        if of_pairs is None:
            used = given[:, :, m].any(dim=0)
        else:
            used = torch.zeros(rows).index_add(0, of_pairs, given[:, m].float()) > 0
        for t in pair:
            t[~used] = filler
        if layout == "chunks" and event:
            pair = torch.cat(pair, dim=1).chunk(2, dim=1)
        elif layout == "strided" and len(event) > 1:
            pair = [t.transpose(1, -1).contiguous().transpose(1, -1) for t in pair]
        elif layout == "expanded":
            given[..., m] &= used[0]  # all rows are the first, which may be missing
            pair = [t[:1].expand(rows, *event) for t in pair]
        loc.append(pair[0])
        log_scale.append(pair[1])
    channels = event[0] if event else 1
    gamma = 2 * torch.rand(channels, generator=generator)
    gamma[0] = 0.0
    return Inputs(
        loc,
        log_scale,
        given,
        of_pairs,
        prior_loc=draw(rows, *event) if prior else None,
        prior_log_scale=draw(rows, *event, scale=spread / 2) if prior else None,
        noise=draw(*given.shape[:-1], *event) if noise == "tensor" else None,
        seed=torch.tensor(seed + 2**40) if noise == "seed" else None,
        common_noise=gamma if common else None,
        power=power,
        clamp=clamp,
        temperature=0.8,
        prior_in=prior_in,
    )


@st.composite
def drawn(draw, dtypes=tuple(DTYPES), experts=(1, 6), events=None):
    """Draws inputs of all kinds."""
    events = events or [(), (1,), (7,), (20,), (2, 33), (3, 4, 8), (4, 64), (130,)]
    prior_in = draw(st.sampled_from(["always", "always", "full", "never"]))
    order = draw(st.sampled_from([None, None, "ascending", "any"]))
    return make(
        seed=draw(st.integers(0, 2**20)),
        experts=draw(st.integers(*experts)),
        subsets=draw(st.integers(1, 4)),
        rows=draw(st.integers(1, 3)),
        event=draw(st.sampled_from(events)),
        dtype=draw(st.sampled_from(dtypes)),
        # gradients of many pairs of one sample add up, and may cancel if they are large
        spread=draw(st.sampled_from([0.01, 1.0, 3.0] if order is None else [0.01, 1.0])),
        prior=draw(st.booleans()),
        noise=draw(st.sampled_from(["tensor", "seed", None])),
        clamp=draw(st.sampled_from([0.0, 2.5])),
        power=draw(st.sampled_from([1, 2])),
        common=draw(st.booleans()) and prior_in == "always",
        layout=draw(st.sampled_from(["dense", "chunks", "strided", "expanded"])),
        order=order,
        prior_in=prior_in,
    )


def prior_of(inputs):
    """Returns the prior as the public operation takes it."""
    return None if inputs.prior_loc is None else (inputs.prior_loc, inputs.prior_log_scale)


def needed(inputs):
    """Says that all gradients are needed that there are, in the order of `inputs.tensors`."""
    experts, prior = 2 * len(inputs.loc), inputs.prior_loc is not None
    others = [False, False, prior, prior, False, False, inputs.common_noise is not None]
    return [True] * experts + others


def gradients_for(outputs, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return Outputs(*(torch.randn(t.shape, generator=generator).to(t.dtype) for t in outputs))


def run(inputs, on=None):
    """Returns all outputs and all gradients of a kernel, as one list."""
    wanted = inputs.noise is not None or inputs.seed is not None
    outputs = _launch.forward(inputs, (wanted, True, True, True), on)
    outputs = outputs._replace(z=outputs.z if wanted else outputs.loc)
    gradients = gradients_for(outputs)
    if not wanted:
        gradients = gradients._replace(z=None)
    into = _launch.backward(inputs, gradients, needed(inputs), on)
    return [*outputs, *(t for t in into if t is not None)]


def exact(inputs):
    """Returns the same by PyTorch in float64."""

    def wide(t):
        return None if t is None else t.double().requires_grad_()

    double = inputs._replace(
        loc=[wide(t) for t in inputs.loc],
        log_scale=[wide(t) for t in inputs.log_scale],
        prior_loc=wide(inputs.prior_loc),
        prior_log_scale=wide(inputs.prior_log_scale),
        noise=None if inputs.noise is None else inputs.noise.double(),
        common_noise=wide(inputs.common_noise),
    )
    outputs = _reference.forward(double)
    shaped = (torch.empty(t.shape, dtype=inputs.loc[0].dtype) for t in outputs[:3])
    gradients = gradients_for([*shaped, torch.empty(outputs[3].shape)])
    gradients = Outputs(*(t.double() for t in gradients))
    if inputs.noise is None and inputs.seed is None:
        gradients = gradients._replace(z=None)
    into = _reference.gradients(double, gradients, needed(inputs))
    return [t.detach() for t in (*outputs, *into) if t is not None]


def distance(inputs, on=None):
    """Returns the largest error, relative to the largest number of each tensor."""
    worst = 0.0
    for value, truth in zip(run(inputs, on), exact(inputs), strict=True):
        if value.numel() == 0:
            continue
        value, truth = _within(value, truth)
        if not value.isfinite().all():
            return float("inf")
        error = (value - truth).abs().max() / truth.abs().max().clamp(min=1)
        worst = max(worst, error.item())
    return worst


def _within(value, truth):
    """Brings both into the range of the value's type: what overflows half precision is infinite.

    Only an infinity of the right sign counts, where the truth is out of range.
    """
    largest = torch.finfo(value.dtype).max
    value = value.double()
    right = value.isinf() & (truth.abs() >= 0.99 * largest) & (value.sign() == truth.sign())
    return torch.where(right, largest * truth.sign(), value), truth.clamp(-largest, largest)
