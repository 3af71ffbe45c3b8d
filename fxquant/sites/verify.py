"""What a graph of each stage may hold. A pass that leaves anything else is broken."""

from __future__ import annotations

from torch import Tensor, fx

from fxquant.errors import VerifyError
from fxquant.fake_quant import ActivationFakeQuant
from fxquant.graph.edit import called_module, get_attribute, nodes_in
from fxquant.graph.place import describe
from fxquant.graph.values import scalars
from fxquant.observers import Observer
from fxquant.ops.spec import Output
from fxquant.sites.call_site import CallSite, InputQuantizer
from fxquant.sites.flow import grids, inputs_of, integer_values, quantizer_of, sites
from fxquant.sites.integer import IntegerOp, Quantize
from fxquant.sites.move import is_move


def verify_observed(gm: fx.GraphModule) -> None:
    """Every site reads values on a known grid; every range of its own has an observer."""
    integers = integer_values(gm)
    for node, site in sites(gm):
        if not integers.issuperset(inputs_of(node)):
            raise VerifyError(f"{describe(node)} reads a float value")
        if site.op.output is Output.OWN and not isinstance(site.output, Observer):
            raise VerifyError(f"{describe(node)} has no observer")


def verify_fake_quant(gm: fx.GraphModule) -> None:
    """Every site knows the quantizers of its inputs and its output, and they are the graph's."""
    grid = grids(gm)
    for node, site in sites(gm):
        lost = [x.name for x in inputs_of(node) if x not in grid]
        if lost:
            raise VerifyError(
                f"{describe(node)} reads '{lost[0]}', which is no integer value (any more).\n"
                "What to do: a module that did nothing in eval() must go on doing nothing there."
            )
        expected = tuple(quantizer_of(gm, grid[x]) for x in inputs_of(node))
        if len(site.sources) != len(expected) or any(
            a is not b for a, b in zip(site.sources, expected, strict=True)
        ):
            raise VerifyError(f"{describe(node)} has other quantizers than its inputs")
        if site.op.output is Output.OWN and not isinstance(site.output, ActivationFakeQuant):
            raise VerifyError(f"{describe(node)} has no fake-quant")
        if (site.weight_quant is None) is not (site.op.weight_axis is None):
            raise VerifyError(f"{describe(node)} has no weight quantizer, or one too many")


def verify_integer(gm: fx.GraphModule) -> None:
    """No site is left, and every integer operator reads integers and constants only."""
    integers: set[fx.Node] = set()
    scalar_nodes = scalars(gm.graph)
    for node in gm.graph.nodes:
        module = called_module(gm, node)
        if isinstance(module, (CallSite, InputQuantizer)):
            raise VerifyError(f"{describe(node)} was not lowered")
        if isinstance(module, IntegerOp):
            settings = [v for name, v in node.kwargs.items() if name not in module.op.indices]
            read = nodes_in((node.args, settings))
            unknown = [x for x in read if x not in integers and x not in scalar_nodes]
            if unknown:
                raise VerifyError(f"{describe(node)} reads the float value '{unknown[0].name}'")
        moved = node.args and node.args[0] in integers and is_move(gm, node)
        if isinstance(module, (Quantize, IntegerOp)) or moved or _is_constant(gm, node):
            integers.add(node)


def _is_constant(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` reads integers that the network holds."""
    value = get_attribute(gm, str(node.target)) if node.op == "get_attr" else None
    return isinstance(value, Tensor) and not value.is_floating_point()
