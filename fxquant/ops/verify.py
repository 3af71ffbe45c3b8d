"""What a graph of each stage may hold. A pass that leaves anything else is broken."""

from __future__ import annotations

from torch import fx

from fxquant.errors import VerifyError
from fxquant.fake_quant import ActivationFakeQuant
from fxquant.graph.edit import module_at
from fxquant.graph.place import describe
from fxquant.observers import Observer
from fxquant.ops.flow import grids, inputs_of, integer_values, sites
from fxquant.ops.integer import Dequantize, IntegerOp, Quantize
from fxquant.ops.site import CallSite, InputQuantizer
from fxquant.ops.spec import Output


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
        expected = tuple(_quantizer(gm, grid[x]) for x in inputs_of(node))
        if len(site.sources) != len(expected) or any(
            a is not b for a, b in zip(site.sources, expected, strict=True)
        ):
            raise VerifyError(f"{describe(node)} has other quantizers than its inputs")
        if site.op.output is Output.OWN and not isinstance(site.output, ActivationFakeQuant):
            raise VerifyError(f"{describe(node)} has no fake-quant")
        if (site.weight_quant is None) is not (site.op.weight_axis is None):
            raise VerifyError(f"{describe(node)} has no weight quantizer, or one too many")


def verify_integer(gm: fx.GraphModule) -> None:
    """No site is left, and every integer operator reads integers."""
    kinds = (Quantize, IntegerOp, Dequantize)
    for node in gm.graph.nodes:
        module = module_at(gm, node)
        if isinstance(module, (CallSite, InputQuantizer)):
            raise VerifyError(f"{describe(node)} was not lowered")
        if isinstance(module, IntegerOp):
            for x in inputs_of(node):
                if x.op == "placeholder" or isinstance(module_at(gm, x), Dequantize):
                    raise VerifyError(f"{describe(node)} reads a float value")
        if isinstance(module, kinds) and node.op != "call_module":
            raise VerifyError(f"{describe(node)} names an integer module without calling it")


def _quantizer(gm: fx.GraphModule, node: fx.Node) -> object:
    module = module_at(gm, node)
    return getattr(module, "output", None)
