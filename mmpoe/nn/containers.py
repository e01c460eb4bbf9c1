"""Containers of modules."""

from __future__ import annotations

__all__ = ["ModalityDict"]

from collections.abc import ItemsView, Iterator, KeysView, Mapping

from torch import nn


class ModalityDict(nn.ModuleDict):
    """A dictionary of modules whose keys may be any strings, dots and method names included.

    :class:`torch.nn.ModuleDict` refuses such keys; here they are escaped inside, and in the names
    of a state dict (``T1.post`` is ``%T1%2Epost`` there), without collisions.

    Arguments:
        modules: The modules by name.

    Example:
        >>> modules = ModalityDict({"T1.post": nn.Identity(), "type": nn.Identity()})
        >>> modules["T1.post"]
        Identity()
        >>> list(modules)
        ['T1.post', 'type']
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self[name] = module

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(_escape(key))

    def __setitem__(self, key: str, module: nn.Module) -> None:
        if not isinstance(key, str):
            raise ValueError(
                f"Modalities should be named by strings, but one is named {key!r}, of type "
                f"{type(key).__name__}."
            )
        super().__setitem__(_escape(key), module)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(_escape(key))

    def __contains__(self, key: str) -> bool:
        return super().__contains__(_escape(key))

    def __iter__(self) -> Iterator[str]:
        return map(_unescape, super().__iter__())

    def keys(self) -> KeysView[str]:
        """The names, as they were given."""
        return dict.fromkeys(self).keys()

    def items(self) -> ItemsView[str, nn.Module]:
        """The names, as they were given, and modules."""
        return dict(zip(self, self.values(), strict=True)).items()


def _escape(name: str) -> str:
    quoted = name.replace("%", "%25").replace(".", "%2E")
    if quoted != name or name == "" or name.startswith("_") or name in _RESERVED:
        return "%" + quoted
    return name


def _unescape(key: str) -> str:
    return key[1:].replace("%2E", ".").replace("%25", "%") if key.startswith("%") else key


# The attributes of nn.ModuleDict without a leading underscore, written out: if they followed the
# installed PyTorch, so would the names in a state dict.
_RESERVED = frozenset(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda
    double dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter
    get_submodule half ipu items keys load_state_dict modules mtia named_buffers named_children
    named_modules named_parameters parameters pop register_backward_hook register_buffer
    register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter
    register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state
    set_submodule share_memory state_dict to to_empty train training type update values xpu
    zero_grad
    """.split()  # noqa: SIM905
)
