"""What a network computes from its own parameters alone, such as softmax(alphas).

Such values stay float while it trains, so that gradients reach the parameters and later changes
of them are seen; in a converted network they are constants.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxquant.graph.edit import called_module, get_attribute, map_nodes
from fxquant.graph.merge import TrainOnly
from fxquant.graph.modes import DROPOUT_CALLS, is_dropout_switched_off, is_identity_in_eval

# those written in Python; torch's own operators say so themselves
_RANDOM = {F.gumbel_softmax, *DROPOUT_CALLS}


def held(gm: fx.GraphModule) -> set[fx.Node]:
    """The nodes that nothing but the network's own tensors and numbers decide."""
    found: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            if isinstance(get_attribute(gm, str(node.target)), (Tensor, float)):
                found.add(node)
        elif node.all_input_nodes and found.issuperset(node.all_input_nodes) and _is_pure(gm, node):
            found.add(node)
    return found


def _is_pure(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it gives the same whenever it is called."""
    if node.op in ("call_method", "call_function"):
        return is_dropout_switched_off(node) or not is_random(node.target)
    module = called_module(gm, node)
    if module is None or isinstance(module, TrainOnly):
        return False
    plain = type(module).__module__.startswith("torch.nn.") and next(module.buffers(), None) is None
    return plain or is_identity_in_eval(module)


def is_random(target: Any) -> bool:
    """Whether a function, or the method of that name, draws random numbers."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    packet = getattr(torch.ops.aten, name, None)
    overloads = [] if packet is None else [getattr(packet, kind) for kind in packet.overloads()]
    draws = any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads)
    return draws or target in _RANDOM


def held_value(gm: fx.GraphModule, node: fx.Node) -> Any:
    """What a held node gives, or whatever a get_attr node reads."""
    return _value(gm, node, {})


def _value(gm: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node not in known:
        known[node] = _computed(gm, node, known)
    return known[node]


def _computed(gm: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return get_attribute(gm, str(node.target))
    args, kwargs = map_nodes((node.args, node.kwargs), lambda part: _value(gm, part, known))
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function = called_module(gm, node) if node.op == "call_module" else node.target
    assert callable(function)
    return function(*args, **kwargs)
