"""Evaluation mode, nested and in several threads."""

import threading

import torch
from torch import nn

import mmpoe
from mmpoe.likelihoods import Normal
from mmpoe.nn import evaluation
from mmpoe.nn.modes import _users


def test_each_module_goes_back_to_its_mode():
    network = nn.Sequential(nn.Dropout(), nn.Dropout().eval(), nn.Dropout())
    with evaluation(network.modules(), besides=[network[2]]):
        assert [m.training for m in network] == [False, False, True]
    assert [m.training for m in network.modules()] == [True, True, False, True]


def test_an_error_ends_a_block_too():
    network = nn.Dropout()
    try:
        with evaluation(network.modules()):
            raise KeyError
    except KeyError:
        assert network.training
        assert not _users


def test_the_last_of_nested_blocks_restores():
    network = nn.Dropout()
    with evaluation(network.modules()):
        with evaluation(network.modules()):
            assert not network.training
        assert not network.training
    assert network.training
    assert not _users


def test_blocks_of_threads_may_end_in_any_order():
    network, entered, ended = nn.Dropout(), threading.Event(), threading.Event()

    def second():
        with evaluation(network.modules()):
            entered.set()
            assert ended.wait(10)
            seen.append(network.training)

    seen: list[bool] = []
    thread = threading.Thread(target=second)
    with evaluation(network.modules()):
        thread.start()
        assert entered.wait(10)
    ended.set()
    thread.join()
    assert seen == [False]
    assert network.training


class Waiting(nn.Module):
    """Waits in its first call until a second one is in, which then waits for the first to end."""

    def __init__(self):
        super().__init__()
        self.calls, self.second, self.first_done = 0, threading.Event(), threading.Event()

    def forward(self, x):
        self.calls += 1
        if self.calls == 1:
            assert self.second.wait(10)
        else:
            self.second.set()
            assert self.first_done.wait(10)
        return x


def test_a_prediction_in_another_thread_has_no_dropout():
    waiting = Waiting()
    encoder = nn.Sequential(waiting, nn.Linear(3, 4), nn.Dropout())
    vae = mmpoe.MVAE({"a": encoder}, {"a": Normal(nn.Linear(2, 3))}, latent_dim=2).train()
    x, found = {"a": torch.ones(50, 3)}, {}

    def predict(name):
        found[name] = vae.predict(x, temperature=0)["a"].mean
        waiting.first_done.set()

    threads = [threading.Thread(target=predict, args=(name,)) for name in "pq"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vae.training
    assert torch.equal(found["p"], found["q"])
