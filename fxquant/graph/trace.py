"""Write down a model's forward as a torch.fx graph, as it behaves in each mode.

    model.eval()  ── trace ── network ──┐
                                        ├─ merge ── one graph for both modes
    model.train() ── trace ── training ─┘

The network is what the model does in eval(): that is what ships. What training adds to it
(an auxiliary head, drop path) hangs on it as float regions that run in train() only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from fxquant.graph.around import refuse_root
from fxquant.graph.edit import SITES
from fxquant.graph.forward import trace_forward
from fxquant.graph.inplace import make_functional, overwriting_modules, refuse_overwriting_leaves
from fxquant.graph.live import Decisions, make_plain, read_beside_parameters
from fxquant.graph.merge import merge, merge_where
from fxquant.graph.modes import is_identity_in_eval
from fxquant.graph.network import Network, network
from fxquant.graph.own import is_torchs_function, is_torchs_module
from fxquant.graph.place import copy_place
from fxquant.graph.positional import put_first_argument_first
from fxquant.graph.tensors import register_tensors
from fxquant.graph.training import trace_training


def trace(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    leaves: frozenset[str] = frozenset(),
) -> Network:
    """A GraphModule over `model`'s own submodules; `model` is edited, so hand in a copy.

    `leaves` are paths of submodules that stay one node each. Raises CaptureError, naming the
    line of the user's code, where the forward depends on data or on unknown shapes, or does
    what a graph cannot: draws random numbers outside it, writes to buffers, runs under no_grad.
    """
    refuse_root(model)
    register_tensors(model)
    modes = {module: module.training for module in model.modules()}
    try:
        in_eval = trace_forward(model, False, example_inputs, leaves, Decisions())
        in_training, others = trace_training(model, example_inputs, leaves)
    finally:
        for module, mode in modes.items():
            module.training = mode
    inside = {m for path in leaves for m in model.get_submodule(path).modules()}
    overwriting = overwriting_modules(model) - inside
    for graph in (in_eval, in_training, *(graph for graph, _, _ in others)):
        put_first_argument_first(graph, model)
        refuse_overwriting_leaves(graph, model, leaves)
        make_functional(graph, model, overwriting, graph is not in_eval)
        _protect_inputs(graph, model)
    for module in overwriting:
        module.inplace = False  # type: ignore[assignment]
    for graph in (in_eval, in_training, *(graph for graph, _, _ in others)):
        read_beside_parameters(graph)
    make_plain(in_eval)
    trained, gm = network(model, in_training), network(model, in_eval)
    for graph, comparison, holds in others:
        merge_where(trained, graph, comparison, holds)
    if hasattr(trained, SITES):
        gm.add_module(SITES, trained.get_submodule(SITES))
    merge(gm, trained.graph)
    gm.recompile()
    return gm


def _protect_inputs(graph: fx.Graph, model: nn.Module) -> None:
    """Give drop path and the like a copy: in training they may overwrite what they read."""
    for node in list(graph.nodes):
        if node.args and isinstance(node.args[0], fx.Node) and _is_users_own(node, model):
            with graph.inserting_before(node):
                copied = graph.call_method("clone", (node.args[0],))
            copy_place(node, copied)
            node.args = (copied, *node.args[1:])


def _is_users_own(node: fx.Node, model: nn.Module) -> bool:
    """Whether `node` calls a function of the user's, or a module of theirs that idles in eval()."""
    if node.op == "call_function":
        function = node.target
        return inspect.isfunction(function) and not is_torchs_function(function)
    if node.op != "call_module":
        return False
    module = model.get_submodule(str(node.target))
    return not is_torchs_module(module) and is_identity_in_eval(module)
