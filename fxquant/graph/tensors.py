"""Tensors that a model holds as plain attributes, alone or in lists, as DARTS code holds alphas.

    before   model.alphas = tensor            model._arch_parameters = [model.alphas, …]
    after    the same objects; each is a buffer of the module that holds it

A graph reads buffers where they are, so they stay live: gradients reach them, and changes of them
are seen. Those with gradients are in the state_dict. None is a Parameter, since an optimizer of
the model's parameters did not move them before.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from fxquant.graph.own import attributes_of, is_torchs_module


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy of `model`; tensors that are results of computations are copied detached."""
    memo = copies_of_nothing(model)

    def note(value: Tensor) -> None:
        if not value.is_leaf:
            memo[id(value)] = value.detach().clone()

    for module in model.modules():
        for value in (*_plain(module).values(), *module._buffers.values()):
            for tensor in tensors_in(value):
                note(tensor)
    return copy.deepcopy(model, memo)


def copies_of_nothing(model: nn.Module) -> dict[int, Any]:
    """deepcopy's memo with a copy of each empty dict and set: a module has nine of them, which it
    would take half of its time to copy one by one.
    """
    return {
        id(value): type(value)()
        for module in model.modules()
        for value in vars(module).values()
        if type(value) in (dict, OrderedDict, set) and not value
    }


def register_tensors(model: nn.Module) -> None:
    """Make every tensor that a module holds as a plain attribute, or in a list, a buffer of it."""
    registered = {id(t) for t in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        for name, value in _plain(module).items():
            if isinstance(value, Tensor):
                delattr(module, name)
                module.register_buffer(name, value, persistent=value.requires_grad)
                registered.add(id(value))
    for module in model.modules():
        for name, value in _plain(module).items():
            for i, tensor in enumerate(tensors_in(value)):
                if id(tensor) not in registered:
                    free = _free_name(module, f"{name}_{i}")
                    module.register_buffer(free, tensor, persistent=tensor.requires_grad)
                    registered.add(id(tensor))


def lend_attributes(model: nn.Module, target: nn.Module) -> None:
    """Give modules of `target` what those of `model`, a copy that nobody else uses, hold as plain
    attributes at the same paths. Tensors among them become those of `target`.
    """
    register_tensors(model)
    held = {**dict(target.named_parameters()), **dict(target.named_buffers())}
    every = (*model.named_parameters(), *model.named_buffers())
    moved = {id(tensor): held[path] for path, tensor in every if path in held}
    modules = dict(target.named_modules(remove_duplicate=False))
    for path, module in model.named_modules():
        if path not in modules or is_torchs_module(module):
            continue
        borrower = modules[path]
        for name, value in attributes_of(module).items():
            if name not in vars(borrower):
                setattr(borrower, name, _map_tensors(value, lambda t: moved.get(id(t), t)))


def _free_name(module: nn.Module, name: str) -> str:
    while hasattr(module, name):
        name += "_"
    return name


@contextmanager
def tensors_tied(model: nn.Module) -> Iterator[None]:
    """Let buffers that are replaced meanwhile stay leaves, and the lists follow them."""
    before = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    yield
    moved: dict[int, Tensor] = {}
    for module, name, old in before:
        new = module._buffers[name]
        if new is not None and new is not old:
            leaf = new.detach().requires_grad_(old.requires_grad)
            module._buffers[name] = moved[id(old)] = moved.get(id(old), leaf)
    for module in model.modules():
        for name, value in _plain(module).items():
            if any(id(tensor) in moved for tensor in tensors_in(value)):
                setattr(module, name, _map_tensors(value, lambda t: moved.get(id(t), t)))


@contextmanager
def lists_replaced(model: nn.Module, function: Callable[[Tensor], Any]) -> Iterator[None]:
    """Let the lists, tuples and dicts of the user's modules hold `function` of each tensor."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    for module in model.modules():
        if is_torchs_module(module):
            continue  # a graph calls it, or reads nothing of its lists
        for name, value in _plain(module).items():
            if next(tensors_in(value), None) is not None:
                before.append((vars(module), name, value))
                vars(module)[name] = _map_tensors(value, function)
    try:
        yield
    finally:
        for held, name, value in before:
            held[name] = value


def _plain(module: nn.Module) -> dict[str, Any]:
    """What a module holds, besides parameters, buffers and modules, that may be tensors."""
    kinds = (Tensor, list, tuple, dict)
    return {k: v for k, v in attributes_of(module).items() if isinstance(v, kinds)}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)


def _map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """`value` with `function` of each tensor; what holds none comes back as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if next(tensors_in(value), None) is None:
        return value
    if isinstance(value, dict):
        return type(value)((k, _map_tensors(v, function)) for k, v in value.items())
    parts = [_map_tensors(part, function) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters of `model` lie in parts on several ranks (FSDP, tensor parallelism).

    Those of an FSDP module are whole behind a forward, for a while.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule  # slow to import, and seldom needed
    from torch.distributed.tensor import DTensor

    in_parts = (isinstance(parameter, DTensor) for parameter in model.parameters())
    return any(in_parts) or any(isinstance(module, FSDPModule) for module in model.modules())
