"""Which values of a graph are integers, and whose grid each of them lies on."""

from __future__ import annotations

from torch import fx

from fxquant.fake_quant import ActivationFakeQuant
from fxquant.graph.edit import called_module
from fxquant.ops.spec import Output
from fxquant.sites.call_site import CallSite, InputQuantizer
from fxquant.sites.move import is_move


def sites(gm: fx.GraphModule) -> list[tuple[fx.Node, CallSite]]:
    """Every operator call of the graph, in order."""
    found = [(node, site_of(gm, node)) for node in gm.graph.nodes]
    return [(node, site) for node, site in found if site is not None]


def site_of(gm: fx.GraphModule, node: fx.Node) -> CallSite | None:
    """The call site that `node` calls, if it is one."""
    module = called_module(gm, node)
    return module if isinstance(module, CallSite) else None


def quantizer_of(gm: fx.GraphModule, node: fx.Node) -> ActivationFakeQuant:
    """The fake-quant behind a node that has a range of its own."""
    module = called_module(gm, node)
    assert isinstance(module, (CallSite, InputQuantizer))
    assert isinstance(module.output, ActivationFakeQuant)
    return module.output


def inputs_of(node: fx.Node) -> list[fx.Node]:
    """The activations that a site's node reads: its positional arguments."""
    return [arg for arg in node.args if isinstance(arg, fx.Node)]


def integer_values(gm: fx.GraphModule) -> set[fx.Node]:
    """The values that will be integers: results of sites, and what is moved around of them."""
    found: set[fx.Node] = set()
    for node in gm.graph.nodes:
        module = called_module(gm, node)
        if isinstance(module, (CallSite, InputQuantizer)) or (
            node.args and node.args[0] in found and is_move(gm, node)
        ):
            found.add(node)
    return found


def grids(gm: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """For each integer value the node whose range it is quantized with.

    Needs every site to read integer values only, as they do once observers are in.
    """
    grid: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        module = called_module(gm, node)
        own = isinstance(module, CallSite) and module.op.output is Output.OWN
        if own or isinstance(module, InputQuantizer):
            grid[node] = node
        elif (
            node.args
            and node.args[0] in grid
            and (isinstance(module, CallSite) or is_move(gm, node))
        ):
            grid[node] = grid[node.args[0]]
    return grid
