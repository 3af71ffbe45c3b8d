"""Write every operator that has an integer form in one way: as a call site.

    before   conv1(x)     F.conv2d(x, self.conv1.weight, …)     x + y     x.add(y)
    after    fxquant.conv1(x, weight=conv1.weight, bias=…, stride=…)     fxquant.add(x, y)

A site is one module per call, so a layer that is called twice has two; its parameters are
arguments that the graph shows. `x + 0`, `x * 1` and dropout that is switched off disappear.
Left alone: calls that only move elements, modules that are kept in float, what the network
computes from its parameters alone (softmax(alphas)), and calls that have no integer form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxquant.graph.edit import erase, get_attribute, insert_site, nodes_in, set_source
from fxquant.graph.held import held
from fxquant.graph.modes import is_dropout_switched_off
from fxquant.graph.place import copy_place
from fxquant.graph.values import indices, scalars
from fxquant.ops.affine import DOES_NOTHING
from fxquant.ops.spec import Call, OpSpec, Parameter
from fxquant.pipeline import Log, Pass, Stage
from fxquant.sites.call_site import CallSite
from fxquant.sites.reading import read_call

_PARAMETERS = ("weight", "bias")  # options that may be computed from parameters


class Canonicalize(Pass):
    """Writes every operator that has an integer form as a call site."""

    name = "canonicalize"
    summary = "every operator that has an integer form becomes a call site"
    needs = gives = Stage.FLOAT

    def __init__(self, float_leaves: frozenset[str] = frozenset()) -> None:
        """`float_leaves`: the module paths that are kept in float on purpose."""
        self.float_leaves = float_leaves

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Visit every node once, in order."""
        scalar_nodes, held_nodes = scalars(gm.graph), held(gm)
        index_nodes = indices(gm.graph)
        for node in list(gm.graph.nodes):
            kept = node.op == "call_module" and node.target in self.float_leaves
            if kept or node in scalar_nodes or node in held_nodes or node in index_nodes:
                continue
            if is_dropout_switched_off(node):
                log.change(node, "does nothing, removed")
                erase(node, node.all_input_nodes[0])
                continue
            found = read_call(gm, node)
            if isinstance(found, str):
                log.leave(node, found)
                continue
            if found is None or not scalar_nodes.isdisjoint(found[1].inputs):
                continue
            op, call = found
            if call.options == DOES_NOTHING:
                log.change(node, "does nothing, removed")
                erase(node, call.inputs[0])
                continue
            if any(
                not _is_held(gm, value, scalar_nodes)
                and not (name in _PARAMETERS and value in held_nodes)
                for name, value in call.options.items()
                if name not in op.indices
            ):
                continue
            if op.weight_axis is not None and call.options["weight"] is None:
                continue
            site = _replace(gm, node, op, call)
            log.change(site, f"written as {op.name}")


def _replace(gm: fx.GraphModule, node: fx.Node, op: OpSpec, call: Call) -> fx.Node:
    with gm.graph.inserting_before(node):
        inputs = tuple(_argument(gm, node, value) for value in call.inputs)
        options = {name: _argument(gm, node, value) for name, value in call.options.items()}
        site = insert_site(gm, node.name, CallSite(op), inputs, options)
    copy_place(node, site)
    name = node.name
    erase(node, site)
    site.name = name  # free again: the node that had it is gone
    set_source(gm, site, name)
    return site


def _argument(gm: fx.GraphModule, node: fx.Node, value: Any) -> Any:
    """A Parameter of the node's module as a get_attr node; anything else as it is."""
    if not isinstance(value, Parameter):
        return value
    path = ".".join(part for part in (str(node.target), value.name) if part)
    attribute = gm.graph.get_attr(path)
    copy_place(node, attribute)
    return attribute


def _is_held(gm: fx.GraphModule, value: Any, scalar_nodes: set[fx.Node]) -> bool:
    """Whether an option is what the model holds or a number, not a tensor that it computes."""
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return isinstance(get_attribute(gm, str(value.target)), torch.Tensor)
    return scalar_nodes.issuperset(nodes_in(value))

