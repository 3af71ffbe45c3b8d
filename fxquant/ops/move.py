"""Calls that only move or pick elements: they mean the same on integers as on reals.

    real      y = rearrange(x)
    integer   q_y = rearrange(q_x)

They need no numbers and no site: such a node stays in the graph as the user wrote it.
"""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from fxquant.graph.edit import module_at
from fxquant.graph.merge import Switch
from fxquant.graph.modes import is_identity_in_eval

_METHODS = {
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "contiguous"),
    *("squeeze", "unsqueeze", "expand", "expand_as", "view_as", "reshape_as", "repeat", "chunk"),
    *("split", "unbind", "narrow", "select", "flip", "roll", "swapaxes", "movedim", "clone"),
    "detach",
}
_FUNCTIONS = {getattr(torch, name) for name in _METHODS if hasattr(torch, name)} | {
    operator.getitem,
    torch.nn.functional.channel_shuffle,
    torch.nn.functional.pixel_shuffle,
    torch.nn.functional.pixel_unshuffle,
}
_MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle)


def is_move(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` rearranges its first argument and does nothing else to it.

    In eval(), that is: dropout and drop path are moves too, and so is a Switch between what
    the network does in the two modes.
    """
    if node.op == "call_method":
        return node.target in _METHODS
    if node.op == "call_function":
        return node.target in _FUNCTIONS
    module = module_at(gm, node) if node.op == "call_module" else None
    return module is not None and (
        type(module) in _MODULES or isinstance(module, Switch) or is_identity_in_eval(module)
    )
