"""What a network decides without looking at any value: from its parameters and from shapes.

    torch.arange(x.shape[1])      x.new_zeros(h, w)      self.bias[:, :x.shape[1]] == 0

Masks and tables are such values. One that parameters alone decide is held (graph/held.py); one
that shapes decide, too, is another tensor for other shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph.edit import get_attribute, map_nodes
from fxquant.graph.held import is_random
from fxquant.graph.place import example_of
from fxquant.graph.values import is_query

# they make a tensor of sizes and numbers, the same whenever they are called
FACTORIES: tuple[Callable[..., Any], ...] = (
    *(torch.arange, torch.eye, torch.full, torch.linspace, torch.ones, torch.tensor, torch.zeros),
)
# of these nobody knows the values
UNKNOWN_FACTORIES: tuple[Callable[..., Any], ...] = (
    *(torch.empty, torch.rand, torch.randint, torch.randn),
)
_LIKE = ("new_full", "new_ones", "new_zeros")
_LIKE_FUNCTIONS = (torch.full_like, torch.ones_like, torch.zeros_like)


def decided(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that parameters and shapes decide, in a graph of calls."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if is_decided(node, found):
            found.add(node)
    return found


def is_decided(node: fx.Node, before: set[fx.Node]) -> bool:
    """Whether parameters and shapes decide `node`, given which nodes before it they decide."""
    if node.op == "get_attr" or is_query(node):
        return True
    if node.op not in ("call_function", "call_method") or is_random(node.target):
        return False
    inputs = node.all_input_nodes
    if takes_shape_only(node):
        inputs = [x for x in inputs if x is not node.args[0]]
    elif not inputs:
        return False
    return before.issuperset(inputs)


def takes_shape_only(node: fx.Node) -> bool:
    """Whether `node` asks its first argument for no more than its shape and dtype."""
    kinds = _LIKE if node.op == "call_method" else _LIKE_FUNCTIONS
    return node.target in kinds


def decided_value(gm: fx.GraphModule, node: fx.Node, device: torch.device) -> Any:
    """What a decided node gives for the example inputs: a tensor on `device`, or a number.

    None where no example says it.
    """
    if node.op == "get_attr":
        return get_attribute(gm, str(node.target))
    example = example_of(node)
    if example is None:
        return None
    if not isinstance(example, Tensor):
        return device if isinstance(example, torch.device) else example

    def value(part: fx.Node) -> Any:
        if takes_shape_only(node) and part is node.args[0]:
            like = example_of(part)
            return None if like is None else torch.zeros_like(like, device=device)
        return decided_value(gm, part, device)

    if any(value(part) is None for part in node.all_input_nodes):
        return None
    args, kwargs = map_nodes((node.args, node.kwargs), value)
    if node.target in FACTORIES:
        kwargs = kwargs | {"device": device}
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
