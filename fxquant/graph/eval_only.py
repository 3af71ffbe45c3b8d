"""Leave of a graph what it does in eval()."""

from __future__ import annotations

import torch
from torch import fx

from fxquant.graph.edit import called_module, erase
from fxquant.graph.merge import Switch
from fxquant.graph.modes import is_identity_in_eval
from fxquant.graph.values import assertions

_COPIES = ("clone", "detach", torch.clone, torch.detach)  # nothing is ever overwritten


def drop_training(gm: fx.GraphModule) -> None:
    """Switches give what they give in eval(); dropout, copies and what only training reads go."""
    for node in list(gm.graph.nodes):
        module = called_module(gm, node)
        idle = module is not None and is_identity_in_eval(module)
        copies = node.op in ("call_method", "call_function") and node.target in _COPIES
        if idle or isinstance(module, Switch) or copies:
            erase(node, node.args[0])
    erase_dead(gm)


def erase_dead(gm: fx.GraphModule) -> None:
    """Nodes that nothing reads go, but for the ends of the graph and its checks of arguments."""
    checks = assertions(gm.graph)
    for node in reversed(list(gm.graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and node not in checks:
            gm.graph.erase_node(node)
