r"""Models in folders: how one was built, as JSON, and its weights, as safetensors; no pickle.

A description names the class of each module and the arguments of its constructor. Nothing that
cannot be built again is written: saving builds the model anew, and compares.
"""

from __future__ import annotations

__all__ = ["explain_matched", "load", "save"]

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from mmpoe.extras import needs
from mmpoe.nn import ModalityDict, Recorded, made_with

from .chunks import is_out_of_memory

if TYPE_CHECKING:
    from .core import MultimodalVAE

FORMAT = 1
"""The version of the files."""
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
HUB = "hf://"
TRUSTED = ("mmpoe", "torch.nn")
"""The packages whose modules a folder may ask for, without a word of the caller."""


class _UnknownError(ValueError):
    """Something cannot be described, or built from a description."""


# saving and loading


def save(
    model: MultimodalVAE,
    folder: str | os.PathLike[str],
    make: str | None,
    arguments: Mapping[str, Any] | None,
) -> None:
    """Writes a model, see :meth:`mmpoe.models.MultimodalVAE.save_pretrained`."""
    with needs("train"):
        from safetensors.torch import save as to_bytes

    if make is None and arguments is not None:
        raise ValueError("'arguments' should be those of 'make', but 'make' is None.")
    state = model.state_dict()
    config: dict[str, Any] = {
        "format": FORMAT,
        "mmpoe": _version(),
        "torch": torch.__version__,
        "class": _name(type(model)),
        "modalities": model.modalities,
    }
    try:
        if make is None:
            config["model"] = _describe(model, "", {})
        else:
            config["make"] = make
            config["arguments"] = {k: _encode(v, k, {}) for k, v in (arguments or {}).items()}
        config["settings"] = _settings(model)
        config = json.loads(json.dumps(config))
        _compare(model, _build(config, None))
    except _UnknownError as error:
        raise ValueError(
            f"'model' should be one that can be built again, but {error} Derive networks of your "
            "own from mmpoe.nn.Recorded, or name a function that builds the model: "
            "save_pretrained(folder, make='package.module:function', arguments={...})."
        ) from error

    names: dict[tuple[Any, ...], str] = {}  # tensors that have several names are stored once
    stored, config["aliases"] = {}, {}
    for name, value in state.items():
        place = (value.data_ptr(), value.dtype, value.shape, value.stride())
        first = names.setdefault(place, name) if value.numel() else name
        if first == name:
            stored[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            config["aliases"][name] = first
    weights = to_bytes(stored)
    config["sha256"] = hashlib.sha256(weights).hexdigest()

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / WEIGHTS, weights)
    _write(folder / CONFIG, json.dumps(config, indent=2).encode())
    if not (folder / CARD).exists():  # somebody may have written more
        _write(folder / CARD, _card(model, config).encode())


def load(
    kind: type[MultimodalVAE], folder: str | os.PathLike[str], trust: Sequence[str]
) -> MultimodalVAE:
    """Reads a model, see :meth:`mmpoe.models.MultimodalVAE.from_pretrained`."""
    with needs("train"):
        from safetensors import SafetensorError
        from safetensors.torch import load as from_bytes

    if isinstance(trust, str):
        raise ValueError(f"'trust' should be a list of packages, but is the string {trust!r}.")
    place = _downloaded(folder)
    config = _read_config(place)
    writer = f"which mmpoe {config.get('mmpoe')} wrote (this is {_version()})"
    try:
        model = _build(config, trust)
        wanted = {name: value.shape for name, value in model.state_dict().items()}
        content = (place / WEIGHTS).read_bytes()
        if hashlib.sha256(content).hexdigest() != config["sha256"]:
            raise _UnknownError("its weights are incomplete or were altered.")
        state = from_bytes(content)
        state |= {name: state[first] for name, first in config["aliases"].items()}
        found = {name: value.shape for name, value in state.items()}
        for name in [*wanted, *found]:
            if wanted.get(name) != found.get(name):
                raise _UnknownError(
                    f"the model has {name!r} with shape {_shown(wanted.get(name))}, and the "
                    f"weights with shape {_shown(found.get(name))}."
                )
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}.") from error
    except SafetensorError as error:
        raise ValueError(f"{place / WEIGHTS} cannot be read: {error}.") from error
    except Exception as error:  # of any type: constructors expect no edited arguments
        if is_out_of_memory(error):
            raise
        what = f"an entry {error} is missing." if isinstance(error, KeyError) else error
        raise ValueError(
            f"{place} should hold a model that can be built, {writer}, but: {what}"
        ) from error
    if not isinstance(model, kind):
        raise ValueError(
            f"{place} should hold a model of the class {kind.__name__}, "
            f"but holds one of {type(model).__name__}."
        )
    model.load_state_dict(state)
    return model.eval()


def explain_matched(model: MultimodalVAE, state: Mapping[str, Any], prefix: str) -> list[str]:
    """Says what to do if a state has matched experts or a spread, and the model has none."""
    if model.spread is None and any(name.startswith(f"{prefix}spread.") for name in state):
        return [
            "It is the state of a model with a spread (mmpoe.imputation.fit_spread), which this "
            "model does not have: save models with save_pretrained and load them with "
            "from_pretrained, which build it by themselves."
        ]
    inside = [name for name in state if name.startswith(f"{prefix}groups.")]
    if model.is_matched or not any(".matched." in name for name in inside):
        return []
    return [
        "It is the state of a calibrated model, with matched experts, which this model does not "
        "have: call mmpoe.imputation.add_matched_experts(model) first, or save models with "
        "save_pretrained and load them with from_pretrained, which do this by themselves."
    ]


def _read_config(place: Path) -> dict[str, Any]:
    try:
        config = json.loads((place / CONFIG).read_text())
    except OSError as error:
        raise ValueError(
            f"'folder' should be one that save_pretrained wrote, with {CONFIG}, but "
            f"{error.filename} cannot be read: {error.strerror}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place / CONFIG} is not valid JSON: {error}.") from error
    version = config.get("format") if isinstance(config, dict) else None
    if version != FORMAT:
        writer = config.get("mmpoe") if isinstance(config, dict) else None
        raise ValueError(
            f"{place / CONFIG} should be of format {FORMAT}, which mmpoe {_version()} "
            f"reads, but is of format {version!r}, of mmpoe {writer}."
        )
    return config


def _downloaded(folder: str | os.PathLike[str]) -> Path:
    """The local folder, or a copy of one of the Hugging Face hub: hf://owner/name@revision."""
    if not (isinstance(folder, str) and folder.startswith(HUB)):
        return Path(folder)
    with needs("hub"):
        from huggingface_hub import snapshot_download  # pyright: ignore[reportMissingImports]

    name, _, revision = folder.removeprefix(HUB).partition("@")
    patterns = [CONFIG, WEIGHTS]
    return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))


def _write(path: Path, content: bytes) -> None:
    """Writes a file in one step: a process that is killed leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _card(model: MultimodalVAE, config: Mapping[str, Any]) -> str:
    """A short model card, for its owner to go on with."""
    size = sum(p.numel() for p in model.parameters())
    likelihoods = {m: type(model.decoders[m]).__name__ for m in model.modalities}
    rows = "\n".join(f"| {m} | {kind} |" for m, kind in likelihoods.items())
    known = model.is_matched or model.spread is not None
    calibrated = "calibrated" if known else "not calibrated"
    trust = f", trust=[{config['make'].partition(':')[0]!r}]" if "make" in config else ""
    return f"""---
library_name: mmpoe
---

# {type(model).__name__} of {", ".join(model.modalities)}

A variational auto-encoder of several modalities, any of which may be missing, with {size}
parameters in {len(model.groups)} latent group{"s" * (len(model.groups) > 1)}; {calibrated}. It was
written by mmpoe {config["mmpoe"]}.

| modality | likelihood |
|---|---|
{rows}

```python
import mmpoe

model = mmpoe.models.MultimodalVAE.from_pretrained("this folder"{trust})
```

The data that it was trained on, its results, and what it is for and not for, are yours to add.
"""


def _version() -> str:
    return import_module("mmpoe").__version__  # which lies above this layer


def _shown(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(tuple(shape))


# what is set after a model was built


def _settings(model: MultimodalVAE) -> dict[str, Any]:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    return {
        "gather": model.gather,
        "validate": model.validate,
        "dtype": str(torch.get_default_dtype() if parameter is None else parameter.dtype)[6:],
        "shapes": [None if g.shape is None else list(g.shape) for g in model.groups],
        "matched": [
            None if g.matched is None else _describe(g.matched, f"groups.{level}.matched", {})
            for level, g in enumerate(model.groups)
        ],
        "spread": None if model.spread is None else _describe(model.spread, "spread", {}),
    }


def _build(config: Mapping[str, Any], trust: Sequence[str] | None) -> MultimodalVAE:
    """Builds a model from its description. Its weights are those of a new one.

    Arguments:
        config: The description.
        trust: The packages and modules that names may be of, besides those of the library; all
            if None.
    """
    finder = _Finder(trust)
    with torch.random.fork_rng(devices=[]):
        if "make" in config:
            arguments = {k: _decode(v, finder) for k, v in config["arguments"].items()}
            model = finder.function(config["make"])(**arguments)
        else:
            model = _decode(config["model"], finder)
        if _name(type(model)) != config["class"]:
            raise _UnknownError(f"{config['class']} is built as {_name(type(model))}.")
        if model.modalities != config["modalities"]:
            raise _UnknownError(
                f"its modalities are {', '.join(config['modalities'])}, and it is built with "
                f"{', '.join(model.modalities)}."
            )
        settings = config["settings"]
        model.gather, model.validate = settings["gather"], settings["validate"]
        parts = zip(model.groups, settings["shapes"], settings["matched"], strict=True)
        for group, shape, matched in parts:
            group.shape = None if shape is None else tuple(shape)
            if matched is not None:
                group.matched = _decode(matched, finder)
        if settings.get("spread") is not None:  # which older folders do not know
            model.spread = _decode(settings["spread"], finder)
    return model.to(getattr(torch, settings["dtype"]))


# descriptions


def _describe(module: nn.Module, path: str, known: dict[nn.Module, int]) -> dict[str, Any]:
    """How to build a module: the name of its class, and the arguments of its constructor.

    Arguments:
        module: The module.
        path: Its place in the model.
        known: The numbers of modules that were described, which are not described again.
    """
    if module in known:
        return {"shared": known[module]}
    number = known[module] = len(known)
    inside = isinstance(module, nn.ModuleDict | nn.Sequential)  # which name no argument in paths
    kind, norm = type(module), {}
    if parametrize.is_parametrized(module):
        kind, norm = kind.__mro__[1], _weight_norm(module, path)
    arguments = {
        name: _encode(value, path if inside else _join(path, name), known)
        for name, value in _arguments(module, kind, path).items()
    }
    return {"class": _name(kind, path), "arguments": arguments, "number": number, **norm}


def _weight_norm(module: nn.Module, path: str) -> dict[str, Any]:
    parametrizations: Any = module.parametrizations
    (name, steps), *others = parametrizations.items()
    if others or len(steps) > 1 or type(steps[0]).__name__ != "_WeightNorm":
        raise _UnknownError(f"{path!r} has a parametrization other than the weight norm.")
    return {"weight_norm": {"name": name, "dim": steps[0].dim}}


def _arguments(module: nn.Module, kind: type, path: str) -> dict[str, Any]:
    """The arguments that build a module like this one: as recorded, or attributes of its name."""
    if isinstance(module, ModalityDict | nn.ModuleDict):
        return {"modules": dict(module.items())}
    known: dict[str, Any] = {}
    if isinstance(module, Recorded):
        try:
            known = made_with(module)
        except TypeError as error:
            raise _UnknownError(f"{path!r} was not made by its constructor: {error}.") from error
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind == inspect.Parameter.VAR_POSITIONAL:
            found[name] = tuple(module) if isinstance(module, nn.Sequential) else ()
        elif parameter.kind == inspect.Parameter.VAR_KEYWORD or name in ("device", "dtype"):
            continue
        elif name in known:
            found[name] = known[name]
        elif hasattr(module, name):
            value = getattr(module, name)
            flag = isinstance(value, Tensor) or (value is None and name in module._parameters)
            found[name] = value is not None if flag else value  # such as the bias of a layer
        elif parameter.default is inspect.Parameter.empty:
            raise _UnknownError(
                f"{path or 'the model'!r} (a {kind.__qualname__}) does not tell its argument "
                f"{name!r}."
            )
    return found


def _encode(value: Any, path: str, known: dict[nn.Module, int]) -> Any:  # noqa: ANN401
    """Turns an argument into something that JSON can hold."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | nn.ModuleList):
        return [_encode(v, _join(path, i), known) for i, v in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": [_encode(v, _join(path, i), known) for i, v in enumerate(value)]}
    if isinstance(value, nn.Module):
        return _describe(value, path, known)
    if isinstance(value, Mapping):
        pairs = [
            [_encode(k, path, known), _encode(v, _join(path, k), known)] for k, v in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype)[6:]}
    if isinstance(value, type) and issubclass(value, nn.Module):
        return {"name": _name(value, path)}
    if isinstance(value, partial):
        keywords = {k: _encode(v, _join(path, k), known) for k, v in value.keywords.items()}
        arguments = [_encode(v, path, known) for v in value.args]
        made = _encode(value.func, path, known)
        return {"partial": made, "args": arguments, "keywords": keywords}
    raise _UnknownError(f"{path!r} holds a {type(value).__name__}, which cannot be written.")


def _decode(value: Any, finder: _Finder) -> Any:  # noqa: ANN401
    """Turns it back into the argument."""
    if isinstance(value, list):
        return [_decode(v, finder) for v in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_decode(v, finder) for v in value["tuple"])
    if "dict" in value:
        return {_decode(k, finder): _decode(v, finder) for k, v in value["dict"]}
    if "tensor" in value:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    if "partial" in value:
        keywords = {k: _decode(v, finder) for k, v in value["keywords"].items()}
        arguments = [_decode(v, finder) for v in value["args"]]
        return partial(_decode(value["partial"], finder), *arguments, **keywords)
    if "name" in value:
        return finder.module_class(value["name"])
    if "shared" in value:
        return finder.built[value["shared"]]
    kind = finder.module_class(value["class"])
    signature = inspect.signature(kind)
    unknown = [name for name in value["arguments"] if name not in signature.parameters]
    if unknown:
        raise _UnknownError(f"{value['class']} has no argument {unknown[0]!r}.")
    arguments: Any = {k: _decode(v, finder) for k, v in value["arguments"].items()}
    bound = inspect.BoundArguments(signature, arguments)
    module = kind(*bound.args, **bound.kwargs)
    if "weight_norm" in value:
        module = weight_norm(module, **value["weight_norm"])
    finder.built[value["number"]] = module
    return module


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


# names


def _name(kind: type, path: str = "") -> str:
    """The shortest dotted name that imports a class."""
    module, name = kind.__module__, kind.__qualname__
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        prefix = ".".join(parts[:end])
        if getattr(sys.modules.get(prefix), name, None) is kind and prefix != "__main__":
            return f"{prefix}.{name}"
    raise _UnknownError(
        f"{path or 'the model'!r} is of the class {module}.{name}, which cannot be imported by "
        "that name elsewhere: put it into a module."
    )


class _Finder:
    """Imports what a description names, from trusted packages alone.

    Arguments:
        trust: The packages and modules of the caller's choice; None trusts all.

    Attributes:
        built: The modules that were built, by their numbers in the description.
    """

    def __init__(self, trust: Sequence[str] | None) -> None:
        self.trust = trust
        self.built: dict[int, nn.Module] = {}

    def module_class(self, name: str) -> type[nn.Module]:
        """Imports a class of modules."""
        module, _, attribute = name.rpartition(".")
        found = self._import(module, attribute, TRUSTED)
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise _UnknownError(f"{name} is not a class of modules.")
        return found

    def function(self, name: str) -> Any:  # noqa: ANN401
        """Imports a function that builds a model, which is never one that nobody trusts."""
        module, colon, attribute = name.partition(":")
        if not colon or not attribute.isidentifier():
            raise _UnknownError(f"'make' should be like 'package.module:function', not {name!r}.")
        return self._import(module, attribute, ())

    def _import(self, module: str, attribute: str, trusted: Iterable[str]) -> Any:  # noqa: ANN401
        if self.trust is not None:
            trusted = [*trusted, *self.trust]
            if not any(module == t or module.startswith(f"{t}.") for t in trusted):
                raise _UnknownError(
                    f"it asks for {module}.{attribute}, code that is imported and run. If you "
                    f"trust it, say so: from_pretrained(..., trust=[{module!r}])."
                )
        try:
            found = getattr(import_module(module), attribute, None)
        except ImportError as error:
            raise _UnknownError(f"{module} cannot be imported: {error}.") from error
        if found is None:
            raise _UnknownError(f"{module} has no {attribute!r}.")
        return found


# comparison


def _compare(model: nn.Module, again: nn.Module) -> None:
    """Raises an _UnknownError at the first difference of two models other than their weights."""
    twins = dict(again.named_modules(remove_duplicate=False))
    own = dict(model.named_modules(remove_duplicate=False))
    for name in [*own, *twins]:
        if name not in twins or name not in own:
            where = "a new one" if name in own else "this one"
            raise _UnknownError(f"{name!r} is missing in {where}.")
    for name, module in own.items():
        twin, place = twins[name], name or "the model"
        if _kind(module) != _kind(twin):
            raise _UnknownError(
                f"{place!r} is a {_kind(module)}, and would be built as a {_kind(twin)}."
            )
        if any(getattr(module, hooks) for hooks in ("_forward_hooks", "_forward_pre_hooks")):
            raise _UnknownError(f"{place!r} has hooks, which would be lost.")
        held, others = _held(module), _held(twin)
        for label in [*held, *others]:
            a, b = held.get(label), others.get(label)
            if a != b:
                raise _UnknownError(f"{place!r} has {label} {a!r}, and would be built with {b!r}.")
    if _sharing(model) != _sharing(again):
        raise _UnknownError("weights that several of its parts share would be apart.")


def _sharing(model: nn.Module) -> list[int]:
    """For each parameter, by name, the first one that it is."""
    found = [
        id(p)
        for _, p in sorted(
            model.named_parameters(remove_duplicate=False), key=lambda item: item[0]
        )
    ]
    return [found.index(i) for i in found]


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _held(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module by name, and the shapes and dtypes of its tensors."""
    skipped = {*vars(_EMPTY), "_made_with"}
    held = {k: v for k, v in vars(module).items() if k not in skipped and _is_plain(v)}
    tensors = {**module._parameters, **module._buffers}
    held["tensors"] = {
        k: None if t is None else (tuple(t.shape), t.dtype) for k, t in tensors.items()
    }
    for name in module._non_persistent_buffers_set:
        value = module._buffers[name]
        held[f"the buffer {name}"] = None if value is None else value.tolist()
    return held


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


_EMPTY = nn.Module()
