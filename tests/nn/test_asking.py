"""A network is passed the optional inputs that its signature names."""

import functools
import gc
import weakref

import pytest
import torch
from torch import nn

from mmpoe.nn._asking import asks_for, call


class Asking(nn.Module):
    """Adds a covariate and the number of valid elements."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x, context, *, valid=None):
        count = 0 if valid is None else valid.sum(dim=1, keepdim=True)
        return self.linear(x) + context["age"] + count


class Inheriting(Asking):
    pass


class Indifferent(nn.Module):
    def forward(self, x, *args, **context):
        assert not args
        assert not context
        return x


class Positional(nn.Module):
    def forward(self, x, context=None, /):
        assert context is None
        return x


def wrapped(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


class Wrapped(Asking):
    forward = wrapped(Asking.forward)


def patched(forward):
    module = nn.Linear(2, 2)
    module.forward = forward
    return module


YES = {
    "module": Asking(),
    "subclass": Inheriting(),
    "decorated": Wrapped(),
    "patched": patched(lambda x, context: x),
    "patched with a method": patched(Asking().forward),
    "compiled": torch.compile(Asking(), backend="eager"),
    "compiled twice": torch.compile(torch.compile(Asking(), backend="eager"), backend="eager"),
    "function": lambda x, *, context=None: x,
    "partial": functools.partial(lambda n, x, context: x, 2),
}
NO = {
    "linear": nn.Linear(2, 2),
    "sequential": nn.Sequential(Asking()),
    "keyword arguments": Indifferent(),
    "positional only": Positional(),
    "compiled": torch.compile(nn.Linear(2, 2), backend="eager"),
    "patched": patched(lambda x: x),
    "builtin": torch.relu,
    "type": print,
}


@pytest.mark.parametrize("name", YES)
def test_a_parameter_of_that_name_asks(name):
    assert asks_for(YES[name], "context")
    assert not asks_for(YES[name], "contexts")


@pytest.mark.parametrize("name", NO)
def test_others_do_not(name):
    assert not asks_for(NO[name], "context")


def test_self_is_no_parameter_of_a_method():
    assert not asks_for(patched(Asking().forward), "self")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_module_does_not_ask():
    scripted = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    assert not asks_for(scripted, "context")
    assert call(scripted, torch.zeros(3, 2), context={}).shape == (3, 2)


def test_call_passes_what_is_asked_for():
    x, context = torch.randn(3, 2), {"age": torch.tensor([[1.0], [2.0], [3.0]])}
    valid = torch.tensor([[True, True], [True, False], [False, False]])
    module = Asking()
    expected = module.linear(x) + torch.tensor([[3.0], [3.0], [3.0]])
    assert torch.equal(call(module, x, context=context, valid=valid), expected)
    for module in (NO["linear"], Indifferent(), Positional()):
        assert torch.equal(call(module, x, context=context, valid=valid), module(x))
    with pytest.raises(KeyError, match="age"):  # a mapping, not None
        call(Asking(), x)


def test_compiled_and_exported_calls_pass_it_too():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([Asking(), nn.Linear(2, 2), NO["sequential"][0]])

        def forward(self, x, context):
            for part in self.parts:
                x = call(part, x, context=context)
            return x

    both, x, context = Both(), torch.randn(3, 2), {"age": torch.randn(3, 1)}
    compiled = torch.compile(both, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, context), both(x, context))
    exported = torch.export.export(both, (x, context)).module()
    torch.testing.assert_close(exported(x, context), both(x, context))


def test_no_module_is_kept_alive():
    modules = [Asking(), patched(Asking().forward)]
    modules.append(patched(functools.partial(Asking.forward, modules[0])))
    for module in modules:
        call(module, torch.zeros(1, 2), context={"age": torch.zeros(1, 1)})
    held = [weakref.ref(module) for module in modules]
    del modules, module
    gc.collect()
    assert [ref() for ref in held] == [None] * 3
