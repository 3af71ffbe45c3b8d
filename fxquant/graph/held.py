"""What a network computes from its own parameters alone, such as softmax(alphas).

Such values stay float while it trains, so that gradients reach the parameters and later changes
of them are seen; in a converted network they are constants.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from fxquant.graph.draws import is_random
from fxquant.graph.edit import called_module, get_attribute, map_nodes
from fxquant.graph.merge import TrainOnly
from fxquant.graph.modes import is_dropout_switched_off, is_identity_in_eval
from fxquant.graph.own import is_torchs_module


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
    plain = is_torchs_module(module) and next(module.buffers(), None) is None
    return plain or is_identity_in_eval(module)


def held_values(gm: fx.GraphModule) -> dict[fx.Node, Any]:
    """What every held node gives, and whatever other get_attr nodes read; each computed once."""
    found, values = held(gm), dict[fx.Node, Any]()
    for node in gm.graph.nodes:
        if node.op == "get_attr" or node in found:
            _value(gm, node, values)
    return values


def held_value(gm: fx.GraphModule, node: fx.Node) -> Any:
    """What one held node gives, or whatever a get_attr node reads."""
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
