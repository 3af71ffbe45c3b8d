"""Write the first argument of every call by position, where later code looks for it.

    before   flatten(input=x, start_dim=1)      relu(input=x)      drop(x=y)
    after    flatten(x, start_dim=1)            relu(x)            drop(y)
"""

from __future__ import annotations

import inspect

from torch import fx, nn


def put_first_argument_first(graph: fx.Graph, root: nn.Module) -> None:
    """Rewrite the calls of functions and modules that have keyword arguments only."""
    for node in graph.nodes:
        if node.args or not node.kwargs:
            continue
        name = "input"  # as all of torch's functions call it
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            name = next(iter(inspect.signature(module.forward).parameters), name)
        if name in node.kwargs:
            rest = {k: v for k, v in node.kwargs.items() if k != name}
            node.args, node.kwargs = (node.kwargs[name],), rest
