"""What is known of every node and every edge of a graph, as a networkx one.

Works on graphs of every stage, and on what plain `torch.fx.symbolic_trace` gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, fx

from fxquant.errors import StageError
from fxquant.graph.edit import SITES, get_attribute, module_at
from fxquant.graph.place import example_of, place_of
from fxquant.graph.values import scalars
from fxquant.pipeline import Stage, say_stage, stage_of
from fxquant.see.grid import Grid, grids_of
from fxquant.see.kind import kind_of, name_of
from fxquant.sites.call_site import CallSite
from fxquant.sites.quantized_layer import QuantizedLayer

if TYPE_CHECKING:
    import networkx  # imported where it is used: it would make `import fxquant` slow


class ValueFacts(TypedDict, total=False):
    """What is known of a value; each only where it is known.

    dtype       of the value: 'uint8' (in a prepared graph: its fake-quant), 'float'
    bits        of such an integer
    scale       of such an integer, once the range is known
    zero_point  the same
    shape       for the example inputs
    """

    dtype: str
    bits: int
    scale: float
    zero_point: int
    shape: tuple[int, ...]


class NodeFacts(ValueFacts, total=False):
    """The attributes of a node; of what it gives, too.

    kind    what it does: 'conv2d → relu', 'max_pool2d', 'quantize', 'input'
    op      the fx opcode
    target  the fx target
    module  the module path that it comes from, "" at the top
    weight  the scheme of the weight: 'int8/channel'
    """

    kind: str
    op: str
    target: str
    module: str
    weight: str


class EdgeFacts(ValueFacts, total=False):
    """The attributes of an edge: what it carries, and where its reader takes that in.

    arguments   ('0', 'weight'), or ('0[1]',) for the second entry of a list
    """

    arguments: tuple[str, ...]


def to_networkx(gm: fx.GraphModule) -> networkx.DiGraph:
    """The graph of `gm` as a networkx one: a node per fx node, by name, in order.

    Nodes have the attributes of `NodeFacts`, edges those of `EdgeFacts`. Parameters are nodes too,
    as they are in fx; a picture leaves out those that an operator reads by name.

    Raises StageError for what is no graph.
    """
    import networkx

    if not isinstance(gm, fx.GraphModule):
        raise StageError(
            f"to_networkx takes a graph, got {say_stage(gm)}.\n"
            "What to do: hand in what prepare_qat, convert or torch.fx.symbolic_trace returned."
        )
    values, numbers = grids_of(gm), scalars(gm.graph)
    graph = networkx.DiGraph(name=type(gm).__name__, stage=stage_of(gm).value)
    for node in gm.graph.nodes:
        value = ValueFacts() if node in numbers else _value(gm, node, values.get(node))
        graph.add_node(node.name, **_facts(gm, node, value))
        for source, arguments in _reads(node).items():
            carried = {k: v for k, v in graph.nodes[source].items() if k in _OF_VALUES}
            graph.add_edge(source, node.name, arguments=arguments, **carried)
    return graph


def _facts(gm: fx.GraphModule, node: fx.Node, value: ValueFacts) -> NodeFacts:
    facts = NodeFacts(
        kind=kind_of(gm, node),
        op=node.op,
        target=node.target if isinstance(node.target, str) else name_of(node.target),
        module=_module_path(node),
    )
    facts.update(value)  # type: ignore[typeddict-item]
    module = module_at(gm, node)
    if isinstance(module, (CallSite, QuantizedLayer)) and module.weight_quant is not None:
        facts["weight"] = str(module.weight_quant.scheme)
    return facts


_OF_VALUES = ValueFacts.__annotations__


def _value(gm: fx.GraphModule, node: fx.Node, integer: Grid | None) -> ValueFacts:
    facts = ValueFacts()
    if integer is not None:
        scheme, q = integer
        facts = ValueFacts(dtype=str(scheme), bits=scheme.bits)
        if q is not None:
            facts |= ValueFacts(scale=float(q.scale), zero_point=int(q.zero_point))
    elif node.op == "get_attr" and isinstance(at := get_attribute(gm, str(node.target)), Tensor):
        facts["dtype"] = _dtype(at.dtype)
    elif isinstance(known := getattr(node.meta.get("tensor_meta"), "dtype", None), torch.dtype):
        facts["dtype"] = _dtype(known)  # after torch.fx's ShapeProp
    elif stage_of(gm) in (Stage.FAKE_QUANT, Stage.INTEGER) and node.op != "output":
        facts["dtype"] = "float"  # all that is neither integer nor a size
    if isinstance(example := example_of(node), Tensor):
        facts["shape"] = tuple(example.shape)
    return facts


def _dtype(dtype: torch.dtype) -> str:
    return "float" if dtype.is_floating_point else str(dtype).removeprefix("torch.")


def _module_path(node: fx.Node) -> str:
    """Where the node comes from: as fxquant wrote it down, or else as torch.fx did."""
    path = place_of(node).module
    if path:
        return path
    stack = node.meta.get("nn_module_stack")
    if stack:
        return str(next(reversed(stack)))
    own = str(node.target).startswith(f"{SITES}.")
    return str(node.target) if node.op == "call_module" and not own else ""


def _reads(node: fx.Node) -> dict[str, tuple[str, ...]]:
    """What `node` reads, by name, and at which places of its arguments."""
    reads: dict[str, tuple[str, ...]] = {}
    for source, argument in _arguments(node):
        reads[source.name] = (*reads.get(source.name, ()), argument)
    return reads


def _arguments(node: fx.Node) -> Iterator[tuple[fx.Node, str]]:
    """Every node that `node` reads, with the place: '0', 'weight', '0[1]', "0['x']"."""

    def walk(value: Any, at: str) -> Iterator[tuple[fx.Node, str]]:
        if isinstance(value, fx.Node):
            yield value, at
        elif isinstance(value, (tuple, list)):
            for i, entry in enumerate(value):
                yield from walk(entry, f"{at}[{i}]")
        elif isinstance(value, dict):
            for key, entry in value.items():
                yield from walk(entry, f"{at}[{key!r}]")
        elif isinstance(value, slice):
            for name in ("start", "stop", "step"):
                yield from walk(getattr(value, name), f"{at}.{name}")

    for i, value in enumerate(node.args):
        yield from walk(value, str(i))
    for name, value in node.kwargs.items():
        yield from walk(value, name)
