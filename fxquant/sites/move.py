"""Calls that only move or pick elements: they mean the same on integers as on reals.

    real      y = rearrange(x)
    integer   q_y = rearrange(q_x)

They need no numbers and no site: such a node stays in the graph as the user wrote it.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from fxquant.graph.edit import called_module, map_nodes, module_at
from fxquant.graph.merge import Switch
from fxquant.graph.modes import is_identity_in_eval
from fxquant.graph.place import example_of

MOVE_METHODS = {
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "contiguous"),
    *("squeeze", "unsqueeze", "expand", "expand_as", "view_as", "reshape_as", "repeat", "chunk"),
    *("split", "unbind", "narrow", "select", "flip", "roll", "swapaxes", "swapdims", "movedim"),
    *("moveaxis", "tile", "repeat_interleave", "index_select", "clone", "detach"),
}
MOVE_ATTRIBUTES = ("T", "mT")  # a tensor, transposed
MOVE_FUNCTIONS = {getattr(torch, name) for name in MOVE_METHODS if hasattr(torch, name)} | {
    operator.getitem,
    torch.nn.functional.channel_shuffle,
    torch.nn.functional.pixel_shuffle,
    torch.nn.functional.pixel_unshuffle,
}
_MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle)


def hands_on(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a move does not even move: dropout and the like, a Switch, `contiguous()`."""
    if node.op == "call_module":
        return not isinstance(module_at(gm, node), _MODULES)
    return node.target in ("contiguous", "clone", "detach", torch.clone, torch.detach)


def apply_move(gm: fx.GraphModule, node: fx.Node, value: Any) -> Any:
    """What `node` makes of another `value` than its own; None where its arguments are unknown."""
    rest = [x for x in node.all_input_nodes if x is not node.args[0]]
    if any(example_of(x) is None for x in rest):
        return None
    args, kwargs = map_nodes((node.args[1:], node.kwargs), example_of)
    if node.op == "call_method":
        name = str(node.target).replace("view", "reshape")  # whatever the strides of `value`
        return getattr(value, name)(*args, **kwargs)
    function = module_at(gm, node) if node.op == "call_module" else node.target
    assert callable(function)
    return function(value, *args, **kwargs)


def is_move(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` rearranges its first argument and does nothing else to it.

    In eval(), that is: dropout and drop path are moves too, and so is a Switch between what
    the network does in the two modes.
    """
    if any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values())):
        return False  # view(dtype) reads the bits of other numbers
    if node.op == "call_method":
        return node.target in MOVE_METHODS
    if node.op == "call_function":
        return node.target in MOVE_FUNCTIONS or (
            node.target is getattr and node.args[1] in MOVE_ATTRIBUTES
        )
    module = called_module(gm, node)
    return module is not None and (
        type(module) in _MODULES or isinstance(module, Switch) or is_identity_in_eval(module)
    )
