"""Which operator a node of a captured graph spells, and with what."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxquant.graph.edit import called_module
from fxquant.ops import spelled_as
from fxquant.ops.spec import Call, OpSpec


def read_call(gm: fx.GraphModule, node: fx.Node) -> tuple[OpSpec, Call] | None:
    """The operator that `node` spells, and the call in its canonical form."""
    module = called_module(gm, node)
    if module is None:
        return read_spelling(node, node.args, node.kwargs)
    for op in spelled_as(type(module)):
        options = op.modules[type(module)](module)
        if options is not None:
            return op, Call((*node.args, *node.kwargs.values()), options)
    return None


def read_spelling(node: fx.Node, args: Any, kwargs: Any) -> tuple[OpSpec, Call] | None:
    """What the function or method that `node` calls would spell with other arguments."""
    if node.op not in ("call_function", "call_method"):
        return None
    for op in spelled_as(node.target):
        call = op.read(args, kwargs)
        if call is not None:
            return op, call
    return None
