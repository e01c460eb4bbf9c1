r"""Containers of modules."""

from __future__ import annotations

__all__ = ["ModalityDict"]

from collections.abc import Mapping

from torch import nn


class ModalityDict(nn.ModuleDict):
    """A dictionary of modules whose keys may be any strings, dots and method names included.

    :class:`torch.nn.ModuleDict` refuses such keys; here they are escaped, without collisions.

    Arguments:
        modules: The modules by name.

    Example:
        >>> modules = ModalityDict({"T1.post": nn.Identity(), "type": nn.Identity()})
        >>> modules["T1.post"]
        Identity()
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self[name] = module

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(_escape(key))

    def __setitem__(self, key: str, module: nn.Module) -> None:
        super().__setitem__(_escape(key), module)

    def __contains__(self, key: str) -> bool:
        return super().__contains__(_escape(key))


def _escape(name: str) -> str:
    quoted = name.replace("%", "%25").replace(".", "%2E")
    if quoted != name or name == "" or name in _RESERVED:
        return "%" + quoted
    return name


_RESERVED = frozenset(dir(nn.ModuleDict()))
