"""Write every operator that has an integer form in one way: as a call site.

    before   conv1(x)     F.conv2d(x, self.conv1.weight, …)     x + y     x.add(y)
    after    fxquant.conv1(x, weight=conv1.weight, bias=…, stride=…)     fxquant.add(x, y)

A site is one module per call, so a layer that is called twice has two; its parameters are
arguments that the graph shows. `x + 0`, `x * 1` and dropout that is switched off disappear.
Left alone: calls that only move elements, calls that have no integer form, and modules that
are kept in float.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxquant.graph.edit import call_site, called_module, erase, get_attribute, nodes_in
from fxquant.graph.modes import is_dropout_switched_off
from fxquant.graph.place import copy_place
from fxquant.graph.values import scalars
from fxquant.ops import spelled_as
from fxquant.ops.affine import DOES_NOTHING
from fxquant.ops.site import CallSite
from fxquant.ops.spec import Call, OpSpec, Parameter
from fxquant.pipeline import Log, Pass, Stage


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
        scalar_nodes = scalars(gm.graph)
        for node in list(gm.graph.nodes):
            if node in scalar_nodes or _is_kept(node, self.float_leaves):
                continue
            if is_dropout_switched_off(node):
                log.change(node, "does nothing, removed")
                erase(node, node.all_input_nodes[0])
                continue
            found = _read(gm, node)
            if found is None or not scalar_nodes.isdisjoint(found[1].inputs):
                continue
            op, call = found
            if call.options == DOES_NOTHING:
                log.change(node, "does nothing, removed")
                erase(node, call.inputs[0])
                continue
            if not all(_is_held(gm, value, scalar_nodes) for value in call.options.values()):
                continue
            if op.weight_axis is not None and call.options["weight"] is None:
                continue
            site = _replace(gm, node, op, call)
            log.change(site, f"written as {op.name}")


def _is_kept(node: fx.Node, float_leaves: frozenset[str]) -> bool:
    """Whether `node` calls a module that is kept in float, be it a layer or an activation."""
    return node.op == "call_module" and node.target in float_leaves


def _read(gm: fx.GraphModule, node: fx.Node) -> tuple[OpSpec, Call] | None:
    """The operator that `node` spells, and the call in its canonical form."""
    module = called_module(gm, node)
    if module is not None:
        for op in spelled_as(type(module)):
            options = op.modules[type(module)](module)
            if options is not None:
                return op, Call((*node.args, *node.kwargs.values()), options)
    elif node.op in ("call_function", "call_method"):
        for op in spelled_as(node.target):
            call = op.read(node.args, node.kwargs)
            if call is not None:
                return op, call
    return None


def _replace(gm: fx.GraphModule, node: fx.Node, op: OpSpec, call: Call) -> fx.Node:
    with gm.graph.inserting_before(node):
        options = {name: _argument(gm, node, value) for name, value in call.options.items()}
        site = call_site(gm, node.name, CallSite(op), call.inputs, options)
    copy_place(node, site)
    name = node.name
    erase(node, site)
    site.name = name  # free again: the node that had it is gone
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

