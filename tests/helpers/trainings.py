"""A small training run with everything in it that has a state, also as a program."""

import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Generator, nn
from torch.utils.data import DataLoader, Dataset

import mmpoe
from mmpoe.likelihoods import Normal
from mmpoe.missing import random_subsets
from mmpoe.nn import MLP
from mmpoe.training import Adversary, Cosine, Optimizer, Run, fit

NAMES = ["a", "b"]


class Samples(Dataset):
    """Rows augmented by all generators there are; a third of them lack either modality."""

    def __init__(self, n=40):
        generator = Generator().manual_seed(7)
        self.rows = torch.rand(n, 2, 3, generator=generator)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        noise = 0.1 * (torch.rand(()) + random.random() + float(np.random.rand()))  # noqa: NPY002
        names = [NAMES, NAMES[:1], NAMES[1:]][index % 3]
        return {m: self.rows[index, NAMES.index(m)] + noise for m in names}


class Bank:
    """Remembers some rows, and draws from them with a generator of its own."""

    def __init__(self):
        self.rows, self.generator, self.pushed = torch.zeros(8, 3), Generator().manual_seed(5), 0

    def push(self, rows):
        self.rows = torch.cat([self.rows, rows])[-8:]
        self.pushed += len(rows)

    def draw(self):
        return self.rows[torch.randint(8, (4,), generator=self.generator)]

    def state_dict(self):
        state = {"rows": self.rows, "generator": self.generator.get_state()}
        return {**state, "more": {"pushed": self.pushed, "size": (8, 3)}}

    def load_state_dict(self, state):
        assert state["more"]["size"] == (8, 3)
        self.rows, self.pushed = state["rows"], state["more"]["pushed"]
        self.generator.set_state(state["generator"])


class Training:
    """A model, discriminators that are trained against it, and a bank of real rows."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        self.model = mmpoe.MVAE(
            {m: MLP(3, 4, hidden=[8]) for m in NAMES},
            {m: Normal(MLP(2, 3, hidden=[8]), learn_scale=True) for m in NAMES},
        )
        self.discriminators = nn.ModuleDict({m: MLP(3, 1, hidden=[8]) for m in NAMES})
        self.bank = Bank()
        self.loader = DataLoader(
            Samples(),
            batch_size=4,
            shuffle=True,
            collate_fn=self.model.collate,
            generator=Generator().manual_seed(seed),
        )
        self.fakes = {}

    def objective(self, model, batch, done):
        x, observed = batch
        output = model(x, random_subsets(observed)[0])
        self.fakes = {m: output.likelihoods[m].mean for m in NAMES}
        if "a" in x:
            self.bank.push(x["a"][observed[:, 0]])
        score = sum(self.discriminators[m](fake).flatten() for m, fake in self.fakes.items())
        return mmpoe.elbo(output, x, observed, beta=min(1.0, 2 * done)) + 0.1 * score

    def adversarial(self, discriminators, batch, done):
        real = self.bank.draw()
        fake = {m: fake.detach() for m, fake in self.fakes.items()}
        return sum(
            discriminators[m](fake[m]).square() + (discriminators[m](real) - 1).square()
            for m in NAMES
        )

    def fit(self, steps, folder=None, **options):
        run = {"save_every": 5, "log_every": 5, "also": {"bank": self.bank}, **options}
        return fit(
            self.model,
            self.loader,
            self.objective,
            steps=steps,
            optimizer=Optimizer(lr=1e-2, accumulate=2, restart=0.4),
            schedule=Cosine(warmup=3),
            adversary=Adversary(self.discriminators, self.adversarial, lr=1e-3, start=0.2),
            accelerator="cpu",
            run=None if folder is None else Run(folder, **run),
            progress=False,
        )

    def tensors(self):
        """All weights, and the state of the bank."""
        bank = {"rows": self.bank.rows, "generator": self.bank.generator.get_state()}
        own = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        discriminators = {
            f"discriminators.{k}": v for k, v in self.discriminators.state_dict().items()
        }
        return {**own, **discriminators, **bank}


def same(a, b):
    """Whether two mappings hold the same tensors, to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


if __name__ == "__main__":  # trainings.py <folder> <steps> <save_every>
    training = Training()
    folder, steps, every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print("start", flush=True)
    history = training.fit(steps, folder, resume=True, save_every=every, log_every=every)
    if history.interrupted:
        print(f"stopped after {len(history.bounds)} steps", flush=True)
        sys.exit(history.exit_code)
    from safetensors.torch import save_file

    save_file({k: v.clone() for k, v in training.tensors().items()}, folder / "last.safetensors")
    print("done", flush=True)
