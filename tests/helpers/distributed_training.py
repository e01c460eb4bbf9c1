"""A program for several processes, on a CPU with gloo.

Usage: `gradients <out>`, `train <out> <folder> <stop after>`, `synthesize <out>`, or
`shards <out>`.
"""

import os
import re
import signal
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from example_models import OBSERVED, SIZES, batch, hierarchical, make
from safetensors.torch import save_file
from torch.utils.data import DataLoader

import mmpoe
from mmpoe.training import Checkpoints, Cosine, Optimizer, Run, fit, shard

# rows by batch: of two processes, the first has the even ones and the second the odd ones;
# "us" is observed in odd rows alone
PATTERNS = {
    "lacks one": [[1, 3], [0, 2], [5, 7], [4, 6]],
    "changing": [[1, 3], [0, 2], [6, 4], [5, 7]],
    "only early": [[1, 3], [0, 2], [6, 4], [2, 4]],
}


def tell(text):
    """Prints a line at once, so that lines of several processes do not mix."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def sgd(parameters, lr, weight_decay):
    return torch.optim.SGD(parameters, lr)


def learn(batches, accumulate):
    """Two steps of gradient descent, with noise that belongs to the rows."""
    model = make(hierarchical)
    noise = [torch.randn(8, n, generator=torch.Generator().manual_seed(n)) for n in (3, 2)]

    def objective(model, rows, done):
        x = {m: values[rows] for m, values in batch().items()}
        given = OBSERVED[rows]
        return mmpoe.elbo(model(x, given, noise=[n[rows] for n in noise]), x, given)

    fit(
        model,
        [torch.tensor(rows) for rows in batches],
        objective,
        steps=2,
        optimizer=Optimizer(make=sgd, lr=0.05, clip=torch.inf, average=0, accumulate=accumulate),
        schedule=Cosine(warmup=0),
        accelerator="cpu",
        progress=False,
    )
    return {name: value.clone() for name, value in model.state_dict().items()}


def train(folder, stop):
    """Twelve steps with a sampler and noise; the second process hears a signal."""
    torch.manual_seed(0)
    model, calls, noise = make(hierarchical), [], []
    rank = int(os.environ["RANK"])

    def objective(model, rows, done):
        calls.append(done)
        if len(calls) == stop and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        x = {m: values[rows] for m, values in batch().items()}
        noise.append(torch.rand(()).item())
        return mmpoe.elbo(model(x, OBSERVED[rows]), x, OBSERVED[rows])

    rows = DataLoader(range(8), 2, shuffle=True, collate_fn=torch.tensor)
    run = Run(folder, resume=True, save_every=2)
    options = {"accelerator": "cpu", "progress": False, "run": run}
    history = fit(model, rows, objective, steps=12, **options)
    tell(f"rank {rank}: {len(history.bounds)} {history.signal} {noise[0]}")
    return {name: value.clone() for name, value in model.state_dict().items()}


class Given(torch.nn.Module):
    """A model with the noise of each batch in turn."""

    def __init__(self, batches):
        super().__init__()
        self.model, self.batches = make(hierarchical), iter(batches)
        self.modalities = self.model.modalities

    def forward(self, x, observed):
        rows = next(self.batches)
        noise = [torch.randn(8, n, generator=torch.Generator().manual_seed(n)) for n in (3, 2)]
        return self.model(x, observed, noise=[n[rows] for n in noise])


def shards(batches, out):
    """The code of the documentation, on CPUs and by gradient descent."""
    page = Path(__file__).parents[2] / "docs" / "training.md"
    (code,) = re.findall(
        r"```python\n((?:(?!```).)*fully_shard.*?)```", page.read_text(), re.DOTALL
    )
    for old, new in [
        ('init_device_mesh("cuda"', 'init_device_mesh("cpu"'),
        ("init_process_group()", 'init_process_group("gloo")'),
        ("AdamW(bound.parameters(), lr=2e-3)", "SGD(bound.parameters(), lr=0.05)"),
        ('save_checkpoint("vae"', f"save_checkpoint({str(out)!r}"),
    ]:
        assert code.count(old) == 1
        code = code.replace(old, new)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    own = batches[rank::world]
    data = [({m: values[rows] for m, values in batch().items()}, OBSERVED[rows]) for rows in own]
    vae = Given(own)
    exec(compile(code, page, "exec"), {"vae": vae, "batches": data})
    shared = [p for p in vae.parameters() if hasattr(p, "full_tensor")]
    assert all(p.to_local().numel() < p.numel() for p in shared if p.shape[0] > 1)
    whole = {n: p.full_tensor() if p.dim() else p for n, p in vae.model.named_parameters()}
    with pytest.raises(TypeError, match=r"shared out among processes: gather it first"):
        mmpoe.training.save_checkpoint(out.with_name("shared"), vae.state_dict(), {})
    torch.distributed.destroy_process_group()
    return {name: value.detach().clone() for name, value in whole.items()}


def volumes():
    """Five patients of different length: what was observed of each, and a name."""
    generator = torch.Generator().manual_seed(0)
    for i, length in enumerate([3, 1, 4, 2, 5]):
        yield f"patient {i}", {"type": torch.randn(length, SIZES["type"], generator=generator)}


def synthesize(cases):
    """The missing modality of each case, by name."""
    model = make(hierarchical).eval()
    return {name: model.predict(x, targets=["us"], temperature=0)["us"].mean for name, x in cases}


if __name__ == "__main__":
    mode, out = sys.argv[1], Path(sys.argv[2])
    rank = os.environ["RANK"]
    save = Checkpoints.save
    Checkpoints.save = lambda *a, **o: (tell(f"rank {rank} saves"), save(*a, **o))[1]
    if mode == "gradients":
        found = {
            f"{pattern}.{name}": value
            for pattern, batches in PATTERNS.items()
            for name, value in learn(batches, accumulate=2).items()
        }
    elif mode == "shards":
        found = shards(list(chain.from_iterable(PATTERNS.values())), out / "vae")
    elif mode == "synthesize":
        torch.distributed.init_process_group("gloo")
        found = synthesize(shard(list(volumes())))
        everyone = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, list(found))
        if rank == "0":
            tell(f"done: {sorted(chain.from_iterable(everyone))}")
        torch.distributed.destroy_process_group()
    else:
        found = train(sys.argv[3], int(sys.argv[4]))
    save_file(found, out / f"{mode}-{rank}.safetensors")
