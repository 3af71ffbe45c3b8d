"""Which nodes of a graph are no real tensors: plain numbers, indices, and checks of arguments."""

from __future__ import annotations

import builtins
import math
import operator

import torch
from torch import fx
from torch.fx._symbolic_trace import _assert_is_none

from fxquant.graph.guard import require_shapes
from fxquant.graph.place import example_of

ASSERTIONS = {require_shapes, torch._assert, _assert_is_none}
ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "layout", "requires_grad"}
QUERIES = {
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "element_size"),
    "is_contiguous",
}
_ARITHMETIC = {
    *(getattr(operator, name) for name in operator.__all__),
    *(getattr(math, name) for name in ("ceil", "floor", "sqrt", "log2", "trunc", "prod")),
    *(builtins.int, builtins.float, builtins.bool, builtins.round),
    *(builtins.len, builtins.max, builtins.min, builtins.abs, builtins.sum, builtins.tuple),
}


def scalars(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that give numbers: shape queries, the model's own numbers, and arithmetic on
    nothing but those.
    """
    found: set[fx.Node] = set()
    for node in graph.nodes:
        held = node.op == "get_attr" and isinstance(example_of(node), (bool, int, float))
        if held or is_query(node) or (
            node.op == "call_function"
            and node.target in _ARITHMETIC
            and node.all_input_nodes
            and found.issuperset(node.all_input_nodes)
        ):
            found.add(node)
    return found


def indices(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that give integer tensors, computed from nothing but arguments and numbers, as far
    as capture knew: they say what to pick, and are not quantized.
    """
    numbers, found = scalars(graph), set[fx.Node]()
    for node in graph.nodes:
        example = example_of(node)
        integral = isinstance(example, torch.Tensor) and not example.is_floating_point()
        if integral and (numbers | found).issuperset(node.all_input_nodes):
            found.add(node)
    return found


def assertions(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that only check arguments: their shapes, or defaults that capture took."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "call_function" and (
            node.target in ASSERTIONS or (node.users and found.issuperset(node.users))
        ):
            found.add(node)
    return found


def is_query(node: fx.Node) -> bool:
    """Whether `node` asks a tensor for its shape, or for what else is not a value of it."""
    if node.op == "call_method":
        return node.target in QUERIES
    return node.op == "call_function" and node.target is getattr and node.args[1] in ATTRIBUTES
