"""Parameters and buffers as tensors of a file, and back: which lie under which names, and how.

    written    each tensor once, its axes in the order of memory
    slots      as JSON, every path that leads to one: of which kind, with which axes
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fxquant.errors import FileError
from fxquant.saved.values import Json

_NAME = re.compile(r'[^."\\\x00-\x1f]+')  # generated code has such names between quotes


def require_name(name: str, path: str) -> None:
    """Refuse, with a FileError, a path that ends with what cannot be a name in a module."""
    if _NAME.fullmatch(name) is None:
        raise FileError(f"{path!r} is no path of a module or a tensor")


def _tensors_of(root: nn.Module) -> Iterator[tuple[str, str, Tensor | None, bool]]:
    """Path, kind, value and persistence of every parameter and buffer, under all its names."""
    for path, module in root.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            yield prefix + name, "parameter", parameter, True
        for name, buffer in module._buffers.items():
            persistent = name not in module._non_persistent_buffers_set
            yield prefix + name, "buffer", buffer, persistent


def write_tensors(root: nn.Module) -> tuple[Json, dict[str, Tensor]]:
    """Where which tensor lies, as JSON, and the tensors, each once, in the order of memory."""
    slots: list[Json] = []
    keys: dict[int, str] = {}
    written: dict[str, Tensor] = {}
    for path, kind, tensor, persistent in _tensors_of(root):
        if tensor is None:
            slots.append({"path": path, "kind": kind, "tensor": None})
            continue
        _check_tensor(path, tensor)
        key = keys.setdefault(id(tensor), path)
        order = _order(tensor)
        written[key] = tensor.detach().permute(order).contiguous().cpu()
        slot = {"path": path, "kind": kind, "tensor": key, "persistent": persistent}
        slots.append(slot | {"requires_grad": tensor.requires_grad, "order": order})
    return slots, written


def _check_tensor(path: str, tensor: Tensor) -> None:
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    if not plain or tensor.device.type == "meta" or tensor.layout is not torch.strided:
        raise FileError(
            f"'{path}' is a {type(tensor).__name__} on {tensor.device}, {tensor.layout}: only "
            "plain, dense tensors can be saved.\n"
            "What to do: gather what is distributed first (get_model_state_dict with "
            "full_state_dict=True), and load it into a network that is not."
        )


def _order(tensor: Tensor) -> list[int]:
    """The axes as they lie in memory, outermost first: channels_last stays channels_last."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


def read_tensors(root: nn.Module, slots: Json, tensors: dict[str, Tensor]) -> None:
    """Give every module under `root` its parameters and buffers."""
    made: dict[str, Tensor] = {}
    for slot in slots:
        owner, _, name = slot["path"].rpartition(".")
        require_name(name, slot["path"])
        module, key = root.get_submodule(owner), slot["tensor"]
        tensor = None if key is None else made.get(key)
        if tensor is None and key is not None:
            tensor = made[key] = _as_it_was(tensors[key], slot)
        _assign(module, name, tensor, slot)


def _as_it_was(tensor: Tensor, slot: Json) -> Tensor:
    order = slot["order"]
    back = sorted(range(len(order)), key=order.__getitem__)
    tensor = tensor.permute(back)
    if slot["kind"] == "parameter":
        return nn.Parameter(tensor, requires_grad=slot["requires_grad"])
    return tensor.requires_grad_(slot["requires_grad"])


def _assign(module: nn.Module, name: str, tensor: Tensor | None, slot: Json) -> None:
    for table in (module._parameters, module._buffers):  # of a module of the user's
        table.pop(name, None)
    if slot["kind"] == "parameter":
        module.register_parameter(name, tensor)  # type: ignore[arg-type]  # or it says why not
    elif slot["kind"] == "buffer":
        module.register_buffer(name, tensor, persistent=slot.get("persistent", True))
    else:
        raise FileError(f"'{slot['path']}' is neither a parameter nor a buffer")
