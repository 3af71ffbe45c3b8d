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

from fxquant.graph.draws import is_random
from fxquant.graph.edit import get_attribute, map_nodes
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
CASTS = ("to", "type_as")  # methods: to the dtype and device of another tensor, or to given ones
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
    like = taken_as_model(node)
    return bool(node.all_input_nodes) and before.issuperset(set(node.all_input_nodes) - {like})


def taken_as_model(node: fx.Node) -> fx.Node | None:
    """The argument of which `node` takes no more than its shape or dtype, if there is one."""
    index = 0
    if node.op == "call_method" and node.target in CASTS:
        index = 1
    elif node.target not in (_LIKE if node.op == "call_method" else _LIKE_FUNCTIONS):
        return None
    like = node.args[index] if len(node.args) > index else None
    if not isinstance(like, fx.Node) or (index and not isinstance(example_of(like), Tensor)):
        return None
    return like


def decided_values(
    gm: fx.GraphModule, nodes: set[fx.Node], device: torch.device
) -> dict[fx.Node, Any]:
    """What those of `nodes`, decided ones, give for the example inputs: tensors on `device`, or
    numbers; without those of which no example says it.
    """
    found: dict[fx.Node, Any] = {}
    for node in gm.graph.nodes:
        example = example_of(node)
        if node not in nodes or example is None:
            continue
        if isinstance(example, torch.device):
            found[node] = device
        elif not isinstance(example, Tensor):
            found[node] = example
        elif node.op == "get_attr":
            found[node] = get_attribute(gm, str(node.target))
        else:
            reads = {part: found.get(part) for part in node.all_input_nodes}
            like = taken_as_model(node)
            if like is not None and (example := example_of(like)) is not None:
                reads[like] = torch.zeros_like(example, device=device)
            if all(value is not None for value in reads.values()):
                found[node] = _call(node, reads, device)
    return found


def _call(node: fx.Node, reads: dict[fx.Node, Any], device: torch.device) -> Any:
    args, kwargs = map_nodes((node.args, node.kwargs), reads.__getitem__)
    if node.target in FACTORIES:
        kwargs = kwargs | {"device": device}
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
